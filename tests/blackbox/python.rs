//! A client that is not ours does the main job: Python, grpcio, server reflection.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use proto::v1::ConsistencyLevel as Wire;

use crate::harness::{Cluster, Keyspace, Options, Signal, datacenters, level};

/// The interpreter that has grpcio. Panics with how to get one.
fn python() -> PathBuf {
    let Some(path) = env::var_os("QUORATE_TEST_PYTHON") else {
        panic!(
            "QUORATE_TEST_PYTHON is not set: `make test` makes a Python environment from \
             tests/python/requirements.txt and sets it; `eval \"$(make -s env)\"` sets it for plain \
             cargo calls afterwards"
        )
    };
    let path = PathBuf::from(path);
    assert!(path.is_file(), "QUORATE_TEST_PYTHON names {}, which is no file", path.display());
    path
}

#[tokio::test]
async fn the_main_job() {
    let python = python();
    let cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    let (read, write) = (level(Wire::Quorum), level(Wire::Quorum));
    cluster.create(&Keyspace { read, write, ..Keyspace::named("python") }).await;
    run(&python, "main_job", &cluster);
    cluster.process(2).signal(Signal::Pause);
    run(&python, "deadline", &cluster);
    cluster.process(2).signal(Signal::Resume);
}

fn run(python: &Path, step: &str, cluster: &Cluster) {
    let package = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it for tests");
    let output = Command::new(python)
        // Leaves no compiled files in the checkout.
        .arg("-B")
        .arg(Path::new(&package).join("python/main_job.py"))
        .args([step, &cluster.node(1).client.to_string(), "python"])
        .output()
        .expect("the interpreter can be run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{stdout}{stderr}", output.status);
    assert!(stdout.ends_with(&format!("{step} is done\n")), "{stdout}{stderr}");
}
