//! How many partitions each node of a datacenter should hold: by capacity, as far as racks allow.

use super::Datacenter;

/// The share of each node, in partitions, if every partition has `replicas` replicas here.
///
/// A rack is taken as a whole first: the even spread fixes how many replicas of each partition it
/// holds up to one, and capacity decides about that one. Within a rack, no node holds a partition
/// twice. Shares grow with `replicas`, so that lists can be made place by place.
pub(super) fn shares(datacenter: &Datacenter<'_>, replicas: usize) -> Vec<f64> {
    let sizes = &datacenter.rack_sizes;
    let spread = |rounds: usize| sizes.iter().map(|it| *it.min(&rounds)).sum::<usize>();
    let round = (1..=replicas).find(|it| spread(*it) >= replicas);
    let round = round.expect("a list is no longer than there are nodes");

    let mut racks: Vec<_> = sizes
        .iter()
        .map(|size| Claim {
            weight: 0.0,
            least: count(*size.min(&(round - 1))),
            most: count(*size.min(&round)),
        })
        .collect();
    for node in &datacenter.nodes {
        racks[node.rack].weight += f64::from(node.description.capacity);
    }
    let by_rack = divide(count(replicas), &racks);

    let mut shares = vec![0.0; datacenter.nodes.len()];
    for (rack, amount) in by_rack.into_iter().enumerate() {
        let members = || (0..shares.len()).filter(|it| datacenter.nodes[*it].rack == rack);
        let weight = |it: usize| f64::from(datacenter.nodes[it].description.capacity);
        let claims: Vec<_> =
            members().map(|it| Claim { weight: weight(it), least: 0.0, most: 1.0 }).collect();
        let members: Vec<_> = members().collect();
        for (node, share) in members.into_iter().zip(divide(amount, &claims)) {
            shares[node] = share * count(datacenter.partitions());
        }
    }
    shares
}

struct Claim {
    weight: f64,
    least: f64,
    most: f64,
}

/// Divides an amount by weight, within everyone's bounds. The amount lies within the bounds' sums.
fn divide(amount: f64, claims: &[Claim]) -> Vec<f64> {
    let at = |level: f64| claims.iter().map(move |it| (it.weight * level).clamp(it.least, it.most));
    let (mut low, mut high) = (0.0, 1.0);
    while at(high).sum::<f64>() < amount && high < 1e9 {
        high *= 2.0;
    }
    // Enough halvings to leave less than any rounding of partitions notices.
    for _ in 0..100 {
        let middle = f64::midpoint(low, high);
        if at(middle).sum::<f64>() < amount { low = middle } else { high = middle }
    }
    at(high).collect()
}

/// Small counts are exact in floating point.
fn count(it: usize) -> f64 {
    f64::from(u32::try_from(it).expect("counts of nodes and partitions are small"))
}
