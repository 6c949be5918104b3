//! Merkle trees against the data that they stand for.

use node::commit::WrongTree;

use crate::{checker::Violation, world::World};

/// The trees of every node are those of its data (M2), but where rows are damaged: nobody knows their
/// hashes.
pub fn trees_are_exact(world: &World) -> Vec<Violation> {
    let mut violations = Vec::new();
    for it in &world.nodes {
        let Some(node) = it.controls.node() else { continue };
        let shared = &node.shared;
        let view = shared.view.load();
        let keyspaces = view.metadata().map(|it| it.keyspaces()).unwrap_or_default();
        for keyspace in keyspaces {
            let wrong = match shared.trees.verify(&it.disk, keyspace.id) {
                Ok(wrong) => wrong,
                Err(error) => {
                    let what = format!("{}: its data cannot be read: {error}", it.name);
                    violations.push(Violation::broken("trees", None, what));
                    continue;
                }
            };
            let sound = wrong.iter().filter(|it| it.damaged == 0);
            violations.extend(sound.map(|wrong| violation(&it.name, &keyspace.name, wrong)));
        }
    }
    violations
}

fn violation(node: &str, keyspace: &str, wrong: &WrongTree) -> Violation {
    let WrongTree { partition, found, expected, .. } = wrong;
    let what = format!(
        "{node}: the tree of partition {} of {keyspace} has hash {} of {} records, its data {} of {} (M2)",
        partition.0, found.0, found.1, expected.0, expected.1
    );
    Violation::broken("trees", None, what)
}
