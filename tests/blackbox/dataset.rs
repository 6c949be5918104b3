//! A real data set through an outage: the Unicode character database, imported at QUORUM into three
//! datacenters, one of which is killed half-way, and read back whole from each of the others.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use model::Key;
use proto::{v1, v1::ConsistencyLevel as Wire};
use serde_json::Value;

use crate::harness::{
    Cluster, Keyspace, Options, Random, datacenters, eventually, level, quorate, run_ok,
};

/// Where Debian's package `unicode-data` puts it.
const UNICODE_DATA: &str = "/usr/share/unicode/UnicodeData.txt";

/// Code points and their lines.
fn records() -> BTreeMap<String, String> {
    let text = fs::read_to_string(UNICODE_DATA).unwrap_or_else(|error| {
        panic!("{UNICODE_DATA}: {error}: `make test` installs the package unicode-data")
    });
    let lines = text.lines().filter(|it| !it.is_empty());
    let record = |line: &str| {
        let (code_point, _) = line.split_once(';').expect("fields are separated by ;");
        (code_point.to_owned(), line.to_owned())
    };
    let records: BTreeMap<_, _> = lines.map(record).collect();
    assert!(records.len() > 30_000, "{UNICODE_DATA} has {} records", records.len());
    records
}

fn write_csv(path: &Path, records: &BTreeMap<String, String>) {
    let mut csv = "key,value\n".to_owned();
    for (key, value) in records {
        let quoted = value.replace('"', "\"\"");
        writeln!(csv, "{key},\"{quoted}\"").expect("memory");
    }
    fs::write(path, csv).expect("a temporary file");
}

/// What an export wrote.
fn read_ndjson(path: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).expect("the export's file");
    let mut records = BTreeMap::new();
    for line in text.lines() {
        let it: Value = serde_json::from_str(line).expect("one JSON object per line");
        let text =
            |name: &str| it[name].as_str().unwrap_or_else(|| panic!("{name}: {line}")).to_owned();
        assert!(it.get("encoding").is_none_or(|it| it == "text"), "{line}");
        let earlier = records.insert(text("key"), text("value"));
        assert!(earlier.is_none(), "twice: {line}");
    }
    records
}

fn assert_whole(found: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>, whence: &str) {
    let wrong = wanted.iter().filter(|it| found.get(it.0) != Some(it.1));
    let wrong: Vec<_> = wrong.map(|it| it.0).take(20).collect();
    assert!(wrong.is_empty(), "{whence}: missing or different: {wrong:?}");
    assert_eq!(found.len(), wanted.len(), "{whence}: rows that nobody wrote");
}

/// An import under way; ended when dropped.
struct Import(Child);

impl Import {
    fn start(arguments: &[&str]) -> Self {
        let child = Command::new(quorate())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Self(child.expect("the binary can be run"))
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("our own child").is_none()
    }

    /// Waits for its end: the report, which a successful import prints.
    async fn report(mut self) -> Value {
        let status = eventually("the import ends", async || match self.0.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it still runs".to_owned()),
            Err(error) => Err(error.to_string()),
        })
        .await;
        let read = |from: &mut dyn std::io::Read| {
            let mut text = String::new();
            from.read_to_string(&mut text).expect("text");
            text
        };
        let stdout = read(self.0.stdout.as_mut().expect("piped"));
        let stderr = read(self.0.stderr.as_mut().expect("piped"));
        assert!(status.success(), "{status}: {stdout}{stderr}");
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_datacenter_dies_during_an_import() {
    let mut random = Random::new("a_datacenter_dies_during_an_import");
    let records = records();
    let total = u64::try_from(records.len()).expect("64 bits");
    let mut cluster = Cluster::start(&datacenters(&[3, 3, 3]), &Options::default()).await;
    cluster.create(&Keyspace::named("unicode")).await;
    let file = cluster.folder().join("unicode.csv");
    write_csv(&file, &records);

    let survivors = cluster.addresses(&[0, 1, 2]);
    let path = file.display().to_string();
    let mut import = Import::start(&[
        "--node",
        &survivors,
        "--prefer-dc",
        "dc1",
        "--json",
        "import",
        "unicode",
        &path,
        "--consistency",
        "QUORUM",
        "--batch-rows",
        "50",
        "--in-flight",
        "4",
    ]);
    // What a node of another datacenter has been sent tells how far the import is.
    let watched = cluster.api(3);
    let half = eventually("half of the rows are written", async || {
        let written = watched.counter("records_written").await;
        if written >= total / 2 { Ok(written) } else { Err(format!("{written} of {total}")) }
    })
    .await;
    assert!(import.is_running(), "the import was over before the datacenter died");
    assert!(half < total * 9 / 10, "{half} of {total}: that is not half-way");
    cluster.kill(&[6, 7, 8]);

    let report = import.report().await;
    assert_eq!(report["written"], total, "{report}");
    for nothing in ["not_applied", "unknown", "malformed", "expired"] {
        assert_eq!(report[nothing], 0, "{report}");
    }
    assert_eq!((&report["complete"], &report["errors_file"]), (&true.into(), &Value::Null));

    for (datacenter, nodes) in [("dc1", [0, 1, 2]), ("dc2", [3, 4, 5])] {
        let to = cluster.folder().join(format!("{datacenter}.ndjson")).display().to_string();
        let addresses = cluster.addresses(&nodes);
        run_ok(&[
            "--node",
            &addresses,
            "--prefer-dc",
            datacenter,
            "--json",
            "export",
            "unicode",
            &to,
            "--consistency",
            "LOCAL_QUORUM",
        ]);
        assert_whole(&read_ndjson(Path::new(&to)), &records, datacenter);
    }

    // The datacenter that was away: at QUORUM its nodes answer what they have missed, too.
    cluster.restart(&[6, 7, 8]).await;
    let keys: Vec<&String> = records.keys().collect();
    let sample: Vec<&String> = (0..400)
        .map(|_| *random.pick(&keys))
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    let request = v1::BatchGetRequest {
        keyspace: "unicode".to_owned(),
        keys: sample.iter().map(|it| Key::new((*it).clone()).into()).collect(),
        consistency: level(Wire::Quorum),
        clock: 0,
    };
    let answer = cluster.api(7).batch_get(request).await.expect("a batch");
    assert_eq!(answer.results.len(), sample.len());
    for (key, result) in sample.iter().zip(answer.results) {
        let Some(v1::batch_get_result::Result::Found(found)) = result.result else {
            panic!("{key}: {result:?}")
        };
        assert_eq!(
            found.value,
            records[*key].as_bytes(),
            "{key} through the datacenter that was away"
        );
    }
}

/// The comparison can fail: one record less, one changed, one too many.
#[test]
fn what_is_missing_is_noticed() {
    let records: BTreeMap<_, _> = (0..3).map(|it| (it.to_string(), "value".to_owned())).collect();
    let differs = |change: fn(&mut BTreeMap<String, String>)| {
        let mut found = records.clone();
        change(&mut found);
        std::panic::catch_unwind(|| assert_whole(&found, &records, "here")).is_err()
    };
    assert!(!differs(|_| {}));
    assert!(differs(|it| drop(it.remove("1"))));
    assert!(differs(|it| drop(it.insert("1".to_owned(), "other".to_owned()))));
    assert!(differs(|it| drop(it.insert("x".to_owned(), "value".to_owned()))));
}
