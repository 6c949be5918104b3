//! As much of a `Cargo.toml` as the rules ask for: the names of its dependencies, and its lints.

/// One member's manifest.
pub(crate) struct Manifest {
    /// The member's folder, which is its name.
    pub(crate) name: String,
    /// What the crate itself needs, and what its build script needs.
    pub(crate) dependencies: Vec<String>,
    /// What only its tests need.
    pub(crate) dev_dependencies: Vec<String>,
    /// True if it takes the workspace's lints.
    pub(crate) takes_lints: bool,
}

impl Manifest {
    /// Reads a manifest, line by line.
    pub(crate) fn parse(name: &str, text: &str) -> Self {
        let mut it = Self {
            name: name.to_owned(),
            dependencies: Vec::new(),
            dev_dependencies: Vec::new(),
            takes_lints: false,
        };
        let mut section = "";
        for line in text.lines().map(str::trim) {
            if let Some(header) = line.strip_prefix('[') {
                section = header.trim_end_matches(']');
                // [dependencies.tokio]
                if let Some((table, dependency)) = section.rsplit_once("dependencies.") {
                    it.add(&format!("{table}dependencies"), dependency);
                }
            } else if section == "lints" && line.replace(' ', "") == "workspace=true" {
                it.takes_lints = true;
            } else if let Some(dependency) = key(line) {
                it.add(section, dependency);
            }
        }
        it
    }

    /// All dependencies, of tests too.
    pub(crate) fn all(&self) -> impl Iterator<Item = &String> {
        self.dependencies.iter().chain(&self.dev_dependencies)
    }

    fn add(&mut self, section: &str, dependency: &str) {
        match section.rsplit('.').next() {
            Some("dev-dependencies") => self.dev_dependencies.push(dependency.to_owned()),
            Some("dependencies" | "build-dependencies") => {
                self.dependencies.push(dependency.to_owned());
            }
            _ => {}
        }
    }
}

/// The names in the root manifest's `[workspace.dependencies]`.
pub(crate) fn workspace_dependencies(root: &str) -> Vec<&str> {
    let table = root.split_once("[workspace.dependencies]").map_or("", |(_, it)| it);
    let table = table.split_once("\n[").map_or(table, |(it, _)| it);
    table.lines().filter_map(key).collect()
}

/// The names in a list of the root manifest, such as `members`.
pub(crate) fn list<'a>(root: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!("\n{name} = [");
    let list = root.split_once(&start).and_then(|(_, it)| it.split_once(']'));
    let (list, _) = list.unwrap_or_else(|| panic!("the root manifest has no {name}"));
    list.split(',').map(|it| it.trim().trim_matches('"')).filter(|it| !it.is_empty()).collect()
}

/// The first word of `tokio.workspace = true` or `tokio = "1"`.
fn key(line: &str) -> Option<&str> {
    let is_name = |it: char| it.is_ascii_alphanumeric() || it == '_' || it == '-';
    let end = line.find(|it| !is_name(it))?;
    (end > 0 && line.contains('=')).then(|| &line[..end])
}

#[test]
fn every_way_to_depend_is_seen() {
    let manifest = Manifest::parse(
        "sample",
        "[package]\nname = \"sample\"\n[lints]\nworkspace = true\n[dependencies]\nmodel.workspace = true\n\
         tokio = { version = \"1\" }\n# comment = 1\n[dependencies.rand]\nversion = \"0.10\"\n\
         [build-dependencies]\nprotox = \"0.9\"\n[target.'cfg(unix)'.dependencies]\nlibc = \"0.2\"\n\
         [dev-dependencies]\nproptest.workspace = true\n[features]\nextra = []\n",
    );
    assert_eq!(manifest.dependencies, ["model", "tokio", "rand", "protox", "libc"]);
    assert_eq!(manifest.dev_dependencies, ["proptest"]);
    assert!(manifest.takes_lints);
}
