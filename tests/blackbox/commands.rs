//! Commands as people and scripts use them: transfers that meet bad lines, that are killed and
//! resumed, that find files or no node; scans; the benchmark; the demo; what the parser refuses.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Output, Stdio},
};

use serde_json::Value;

use crate::harness::{Cluster, Keyspace, Options, Slots, command, datacenters, eventually, run};

/// Where nobody listens.
const NOBODY: &str = "127.0.0.1:1";

/// One node with the keyspace `shop`, and the commands that a person would give it.
struct Shop(Cluster);

impl Shop {
    async fn open() -> Self {
        let cluster = Cluster::start(&datacenters(&[1]), &Options::small_ring()).await;
        let replicas = vec![("dc1".to_owned(), 1)];
        cluster.create(&Keyspace { replicas, ..Keyspace::named("shop") }).await;
        Self(cluster)
    }

    /// A file of the test.
    fn file(&self, name: &str) -> PathBuf {
        self.0.folder().join(name)
    }

    /// Runs a command with JSON for results and errors.
    fn run(&self, arguments: &[&str]) -> Output {
        run_at(&self.0.addresses(&[0]), arguments)
    }

    /// Runs a command that must succeed; the documents that it writes.
    fn run_ok(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        documents(&output.stdout)
    }

    /// The keys and values of the keyspace, through an export.
    fn exported(&self) -> BTreeMap<String, String> {
        let file = self.file("exported.ndjson");
        self.run_ok(&["export", "shop", text(&file), "--overwrite"]);
        rows(&documents(&fs::read(file).expect("the export's file")))
    }
}

fn run_at(node: &str, arguments: &[&str]) -> Output {
    run(&[&["--json", "--timeout", "5s", "--node", node], arguments].concat())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

/// One JSON document per line.
fn documents(bytes: &[u8]) -> Vec<Value> {
    let parse = |it: &str| serde_json::from_str(it).unwrap_or_else(|error| panic!("{error}: {it}"));
    String::from_utf8_lossy(bytes).lines().map(parse).collect()
}

/// The one error that a command reports, after it ended so.
fn error(output: &Output, exit_code: i32) -> Value {
    let errors = documents(&output.stderr);
    assert_eq!((output.status.code(), errors.len()), (Some(exit_code), 1), "{output:?}");
    let error = errors[0]["error"].clone();
    assert_eq!(error["exit_code"], exit_code, "{error}");
    assert!(!strings(&error["try"]).is_empty(), "nothing to try: {error}");
    error
}

fn strings(array: &Value) -> Vec<&str> {
    let array = array.as_array().unwrap_or_else(|| panic!("no array: {array}"));
    array.iter().filter_map(Value::as_str).collect()
}

/// Keys and values of rows; none may come twice.
fn rows(documents: &[Value]) -> BTreeMap<String, String> {
    let text = |it: &Value, name: &str| it[name].as_str().expect("text").to_owned();
    let found: BTreeMap<_, _> =
        documents.iter().map(|it| (text(it, "key"), text(it, "value"))).collect();
    assert_eq!(found.len(), documents.len(), "a row came twice");
    found
}

fn counts(report: &Value) -> [u64; 4] {
    ["written", "not_applied", "unknown", "malformed"]
        .map(|it| report[it].as_u64().unwrap_or_else(|| panic!("{it}: {report}")))
}

#[tokio::test]
async fn an_import_with_bad_lines() {
    let shop = Shop::open().await;
    let (file, errors) = (shop.file("rows.csv"), shop.file("rows.csv.errors.ndjson"));
    let data = format!("key,value\na,1\nno comma\nb,2\n{},3\nc,4\n", "k".repeat(70_000));
    fs::write(&file, &data).expect("a file");
    let import = ["import", "shop", text(&file)];

    let output = shop.run(&import);
    assert_eq!(output.status.code(), Some(1), "some were certainly not written: {output:?}");
    let report = &documents(&output.stdout)[0];
    assert_eq!(counts(report), [3, 1, 0, 1], "{report}");
    assert_eq!(report["errors_file"], text(&errors), "{report}");
    let reasons = &report["reasons"];
    let first = |reason: &str| (reasons[reason]["rows"].as_u64(), reasons[reason]["line"].as_u64());
    assert_eq!(first("MALFORMED_RECORD"), (Some(1), Some(3)), "{report}");
    assert_eq!(first("KEY_TOO_LARGE"), (Some(1), Some(5)), "{report}");
    let said = reasons["KEY_TOO_LARGE"]["message"].as_str();
    assert!(said.is_some_and(|it| it.contains("70000")), "{report}");
    let kept = fs::read(&errors).expect("the errors file");
    let refused = documents(&kept);
    let told: Vec<_> =
        refused.iter().map(|it| (it["line"].as_u64(), it["reason"].as_str())).collect();
    assert_eq!(told, [(Some(3), Some("MALFORMED_RECORD")), (Some(5), Some("KEY_TOO_LARGE"))]);
    assert_eq!(refused[0]["record"].as_str().map(str::trim_end), Some("no comma"));
    assert!(refused.iter().all(|it| it["outcome"] == "not_applied"), "{refused:?}");
    let wanted = [("a", "1"), ("b", "2"), ("c", "4")];
    let wanted: BTreeMap<_, _> =
        wanted.into_iter().map(|it| (it.0.to_owned(), it.1.to_owned())).collect();
    assert_eq!(shop.exported(), wanted);

    // What it has not written is not lost to the next import, nor to one that reaches nobody.
    let again = error(&shop.run(&import), 1);
    assert_eq!(again["reason"], "ERRORS_FILE_EXISTS", "{again}");
    let restart = [&import[..], &["--restart"]].concat();
    error(&run_at(NOBODY, &restart), 4);
    assert_eq!(fs::read(&errors).expect("the errors file"), kept);
    // Nor are the data themselves.
    for arguments in [&import[..], &restart] {
        let own = error(&shop.run(&[arguments, &["--errors", text(&file)]].concat()), 2);
        assert_eq!(own["reason"], "USAGE", "{own}");
        assert_eq!(fs::read_to_string(&file).expect("the data"), data);
    }

    let output = shop.run(&restart);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(documents(&fs::read(&errors).expect("the errors file")).len(), 2);
    let elsewhere = shop.file("elsewhere.ndjson");
    let output = shop.run(&[&import[..], &["--errors", text(&elsewhere)]].concat());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(documents(&fs::read(&elsewhere).expect("the errors file")).len(), 2);
}

/// What every row would meet ends an import at once, and leaves nothing that stands in the way of the
/// next one.
#[tokio::test]
async fn an_import_that_no_row_can_pass() {
    let shop = Shop::open().await;
    let file = shop.file("rows.csv");
    let rows: String = (0..5_000).map(|it| format!("key{it},value\n")).collect();
    fs::write(&file, format!("key,value\n{rows}")).expect("a file");
    let small = ["--batch-rows", "10"];
    for (arguments, reason) in [
        (&["import", "nowhere", text(&file)][..], "KEYSPACE_NOT_FOUND"),
        (&["import", "shop", text(&file), "--consistency", "3"], "INVALID_CONSISTENCY"),
        (&["import", "shop", text(&file), "--consistency", "ANY"], "INVALID_CONSISTENCY"),
    ] {
        let output = shop.run(&[arguments, &small].concat());
        let told = error(&output, 1);
        assert_eq!((&told["reason"], &told["outcome"]), (&reason.into(), &"not_applied".into()));
        let report = &documents(&output.stdout)[0];
        assert_eq!((counts(report), &report["complete"]), ([0; 4], &false.into()), "{report}");
        let left: Vec<_> = fs::read_dir(shop.0.folder()).expect("a folder").flatten().collect();
        let left: Vec<_> =
            left.iter().map(|it| it.file_name().into_string().expect("text")).collect();
        assert!(!left.iter().any(|it| it.starts_with("rows.csv.")), "{left:?}");
    }
    let report = &shop.run_ok(&["import", "shop", text(&file)])[0];
    assert_eq!((counts(report), &report["reasons"]), ([5_000, 0, 0, 0], &serde_json::json!({})));
}

/// A command under way; ended when dropped.
struct Running(Child);

impl Running {
    fn start(node: &str, arguments: &[&str]) -> Self {
        let child = command()
            .args(["--json", "--node", node])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("the binary can be run"))
    }

    /// Waits for its end, and for what it said.
    async fn output(mut self) -> Output {
        let status = eventually("it ends", async || match self.0.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        })
        .await;
        let read = |from: &mut dyn Read| {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).expect("bytes");
            bytes
        };
        let stdout = read(self.0.stdout.as_mut().expect("piped"));
        let stderr = read(self.0.stderr.as_mut().expect("piped"));
        Output { status, stdout, stderr }
    }

    /// Kills it as power loss would. Panics if it has ended already.
    fn kill(mut self) {
        let ended = self.0.try_wait().expect("our own child");
        assert_eq!(ended, None, "it was over before it could be killed");
        self.0.kill().expect("it runs");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn an_import_killed_and_resumed() {
    const ROWS: usize = 60_000;
    let shop = Shop::open().await;
    let node = shop.0.addresses(&[0]);
    let file = shop.file("rows.csv");
    let (mut data, mut wanted) = ("key,value\nno comma\n".to_owned(), BTreeMap::new());
    for at in 0..ROWS {
        let (key, value) = (format!("key{at:06}"), format!("value {at}"));
        writeln!(data, "{key},{value}").expect("memory");
        wanted.insert(key, value);
    }
    data += "no comma either\n";
    fs::write(&file, data).expect("a file");
    let import = ["import", "shop", text(&file)];

    // One row at a time, so that it is far from its end when its first position is written down.
    let slowly = [&import[..], &["--batch-rows", "1", "--in-flight", "1"]].concat();
    let import_state = shop.file("rows.csv.import-state.json");
    let running = Running::start(&node, &slowly);
    eventually("a position is written down", async || match fs::read(&import_state) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    })
    .await;
    running.kill();

    let unfinished = error(&shop.run(&import), 1);
    assert_eq!(unfinished["reason"], "IMPORT_UNFINISHED", "{unfinished}");
    let elsewhere = shop.file("elsewhere.ndjson");
    fs::write(&elsewhere, "somebody's\n").expect("a file");
    let resume = [&import[..], &["--resume"]].concat();
    let other = error(&shop.run(&[&resume[..], &["--errors", text(&elsewhere)]].concat()), 1);
    assert_eq!(other["reason"], "CANNOT_RESUME", "{other}");
    assert_eq!(fs::read_to_string(&elsewhere).expect("a file"), "somebody's\n");

    // Only an import that begins anew would write the first row again.
    shop.run_ok(&["put", "shop", "key000000", "written since"]);
    wanted.insert("key000000".to_owned(), "written since".to_owned());
    let output = shop.run(&[&resume[..], &["--batch-rows", "500"]].concat());
    assert_eq!(output.status.code(), Some(1), "two lines are no rows: {output:?}");
    let report = &documents(&output.stdout)[0];
    assert_eq!(report["complete"], true, "{report}");
    assert_eq!(counts(report), [u64::try_from(ROWS).expect("64 bits"), 0, 0, 2], "{report}");
    let errors = documents(&fs::read(shop.file("rows.csv.errors.ndjson")).expect("the errors"));
    let lines: Vec<_> = errors.iter().map(|it| it["line"].as_u64().expect("a line")).collect();
    assert_eq!(lines, [2, u64::try_from(ROWS).expect("64 bits") + 3]);
    let found = shop.exported();
    let wrong: Vec<_> = wanted.iter().filter(|it| found.get(it.0) != Some(it.1)).take(9).collect();
    assert!(wrong.is_empty(), "missing or different: {wrong:?}");
    assert_eq!(found.len(), wanted.len(), "rows that nobody wrote");
    let done = error(&shop.run(&resume), 1);
    assert_eq!(done["reason"], "NOTHING_TO_RESUME", "{done}");
}

/// A keyspace that goes away under an import: what was written counts, and the rest comes later.
#[tokio::test]
async fn an_import_refused_half_way() {
    const ROWS: u64 = 20_000;
    let shop = Shop::open().await;
    let file = shop.file("rows.csv");
    let rows: String = (0..ROWS).map(|it| format!("key{it},value\n")).collect();
    fs::write(&file, format!("key,value\n{rows}")).expect("a file");
    let import = ["import", "shop", text(&file)];
    let child = command()
        .args(["--json", "--node", &shop.0.addresses(&[0])])
        .args([&import[..], &["--batch-rows", "1", "--in-flight", "1"]].concat())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let running = Running(child.expect("the binary can be run"));
    let import_state = shop.file("rows.csv.import-state.json");
    eventually("a position is written down", async || match import_state.exists() {
        true => Ok(()),
        false => Err("it is not there".to_owned()),
    })
    .await;
    shop.run_ok(&["admin", "keyspace", "drop", "shop", "--yes"]);

    let output = running.output().await;
    let told = error(&output, 1);
    assert_eq!(
        (&told["reason"], &told["outcome"]),
        (&"KEYSPACE_NOT_FOUND".into(), &"partial".into())
    );
    assert!(strings(&told["try"]).contains(&"then the same with --resume"), "{told}");
    let report = &documents(&output.stdout)[0];
    let [written, others @ ..] = counts(report);
    assert!((1..ROWS).contains(&written) && others == [0; 3], "{report}");
    assert!(!shop.file("rows.csv.errors.ndjson").exists(), "no row is at fault");

    shop.run_ok(&["admin", "keyspace", "create", "shop"]);
    let report = &shop.run_ok(&[&import[..], &["--resume"]].concat())[0];
    assert_eq!(counts(report), [ROWS, 0, 0, 0], "{report}");
    assert_eq!(shop.exported().len(), usize::try_from(ROWS - written).expect("64 bits"));
}

#[tokio::test]
async fn an_export_that_cannot_begin() {
    let shop = Shop::open().await;
    let file = shop.file("old.ndjson");
    fs::write(&file, "the old export\n").expect("a file");
    let export = ["export", "shop", text(&file)];
    let overwrite = [&export[..], &["--overwrite"]].concat();
    error(&run_at(NOBODY, &overwrite), 4);
    let nowhere = error(&shop.run(&["export", "nowhere", text(&file), "--overwrite"]), 1);
    assert_eq!(nowhere["reason"], "KEYSPACE_NOT_FOUND", "{nowhere}");
    let there = error(&shop.run(&export), 1);
    assert_eq!(strings(&there["try"]), ["--overwrite", "--resume"]);
    let never = error(&shop.run(&[&export[..], &["--resume"]].concat()), 1);
    assert_eq!(never["reason"], "NOTHING_TO_RESUME", "{never}");
    assert_eq!(fs::read_to_string(&file).expect("the old export"), "the old export\n");

    let new = shop.file("new.ndjson");
    error(&run_at(NOBODY, &["export", "shop", text(&new)]), 4);
    assert!(!new.exists(), "nothing was exported");
    shop.run_ok(&overwrite);
    assert_eq!(fs::read_to_string(&file).expect("the new export"), "", "there are no rows");
}

#[tokio::test]
async fn scans() {
    let shop = Shop::open().await;
    for (key, sort_key) in [("u1", "a"), ("u1", "b"), ("u1", "c"), ("u2", "a"), ("u3", "")] {
        let value = format!("{key} {sort_key}");
        shop.run_ok(&["put", "shop", key, &value, "--sort", sort_key]);
    }
    let sort_keys = |arguments: &[&str]| {
        let rows = shop.run_ok(&[&["scan", "shop"], arguments].concat());
        assert!(rows.iter().all(|it| it["key"] == arguments[0]), "{rows:?}");
        rows.iter().map(|it| it["sort_key"].as_str().expect("text").to_owned()).collect::<String>()
    };
    assert_eq!(sort_keys(&["u1"]), "abc");
    assert_eq!(sort_keys(&["u1", "--reverse", "--limit", "2"]), "cb");
    assert_eq!(sort_keys(&["u1", "--start", "b"]), "bc");
    assert_eq!(sort_keys(&["u1", "--end", "b"]), "a");
    assert_eq!(sort_keys(&["7531", "--hex", "--prefix", "62"]), "62");
    assert_eq!(sort_keys(&["nobody"]), "");

    let all = shop.run_ok(&["scan", "shop"]);
    let values: BTreeSet<_> = all.iter().map(|it| it["value"].as_str().expect("text")).collect();
    assert_eq!(values, BTreeSet::from(["u1 a", "u1 b", "u1 c", "u2 a", "u3 "]));
    assert_eq!(all.len(), 5, "{all:?}");
    assert_eq!(shop.run_ok(&["scan", "shop", "--limit", "4"]), all[..4]);
}

#[tokio::test]
async fn a_benchmark() {
    let shop = Shop::open().await;
    let bench = ["bench", "run", "--keyspace", "shop", "--duration", "1s", "--keys", "1000"];
    let report = &shop.run_ok(&[&bench[..], &["--fill", "--clients", "8"]].concat())[0];
    assert_eq!((&report["errors"], &report["not_begun"]), (&0.into(), &0.into()), "{report}");
    let operations = report["operations"].as_array().expect("operations");
    assert_eq!(operations.len(), 2, "reads and writes: {report}");
    for operation in operations {
        assert!(operation["calls"].as_u64() > Some(0), "{operation}");
        assert_eq!(operation["absent"], 0, "every key was written before: {operation}");
    }
}

#[test]
fn a_demo_of_two_nodes() {
    let _slots = Slots::take(2);
    let output = run(&["demo", "--json", "--dcs", "2", "--nodes", "1"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let [told] = &documents(&output.stdout)[..] else { panic!("{output:?}") };
    let facts =
        told["chapters"].as_array().expect("chapters").iter().flat_map(|it| strings(&it["facts"]));
    let left_out: Vec<_> = facts.filter(|it| it.contains("left out")).collect();
    assert_eq!(left_out, ["THREE is left out: a row has 2 replicas here"]);
}

#[test]
fn the_demo() {
    let _slots = Slots::take(9);
    let output = run(&["demo", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let [told] = &documents(&output.stdout)[..] else { panic!("{output:?}") };
    assert_eq!(told["held"], true, "{told}");
    assert_eq!(told["addresses"].as_array().map(Vec::len), Some(9), "{told}");
    let chapters = told["chapters"].as_array().expect("chapters");
    let checks: Vec<_> =
        chapters.iter().flat_map(|it| it["checks"].as_array().expect("checks")).collect();
    assert!(!checks.is_empty() && checks.iter().all(|it| it["held"] == true), "{checks:?}");
}

/// Who listens and never answers holds up a command for its timeout, and no longer.
#[test]
fn a_write_that_reaches_nobody() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent = silent.local_addr().expect("bound").to_string();
    for node in [NOBODY, &silent] {
        for writes in [&["put", "shop", "key", "value"][..], &["delete", "shop", "key"]] {
            let asked = [&["--json", "--timeout", "300ms", "--node", node], writes].concat();
            let told = error(&run(&asked), 4);
            assert_eq!(told["reason"], "CONNECTION_LOST", "{node}: {told}");
            assert_eq!(told["outcome"], "not_applied", "{node}: {told}");
        }
        let asked = ["--json", "--timeout", "300ms", "--node", node, "get", "shop", "key"];
        let told = error(&run(&asked), 4);
        assert_eq!((&told["reason"], &told["outcome"]), (&"CONNECTION_LOST".into(), &Value::Null));
    }
    let change = ["--json", "--node", NOBODY, "admin", "keyspace", "create", "shop"];
    assert_eq!(error(&run(&change), 4)["outcome"], "not_applied");
}

#[test]
fn what_the_parser_refuses() {
    let refused = ["get", "shop", "key", "--consistency", "SOME"];
    let told = error(&run(&[&refused[..], &["--json"]].concat()), 2);
    assert_eq!((&told["reason"], &told["outcome"]), (&"USAGE".into(), &Value::Null), "{told}");
    assert!(told["message"].as_str().is_some_and(|it| it.contains("'SOME'")), "{told}");
    assert_eq!(error(&run(&["--json"]), 2)["reason"], "USAGE");

    let plainly = run(&refused);
    assert_eq!(plainly.status.code(), Some(2));
    assert!(plainly.stderr.starts_with(b"error: invalid value 'SOME'"), "{plainly:?}");
    // After `--` it is a key and no option.
    assert!(run(&["get", "--", "--json"]).stderr.starts_with(b"error: "));
    for asked in ["--help", "--version"] {
        let output = run(&["--json", asked]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(output.stderr.is_empty() && !output.stdout.starts_with(b"{"), "{output:?}");
    }
}
