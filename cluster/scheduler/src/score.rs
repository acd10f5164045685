//! How well a pod would be on a node: upstream's default scores and weights, each from 0 to 100.

use std::collections::HashMap;

use crate::{
    node::{Node, NodeFacts},
    pod::Wants,
};

pub const MOST: i64 = 100;

/// Where pods go among nodes that have room (BO-03).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fit {
    /// Where most is left: room to grow, and little is lost with a node. Upstream's `LeastAllocated`.
    #[default]
    Worst,
    /// Where least is left: whole nodes stay free. Upstream's `MostAllocated`.
    Best,
    /// As best fit, but what would be left of one resource without the other counts against it: it is stranded.
    Hybrid,
}

impl std::str::FromStr for Fit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "worst" => Ok(Self::Worst),
            "best" => Ok(Self::Best),
            "hybrid" => Ok(Self::Hybrid),
            other => Err(format!("{other:?} is none of worst, best, hybrid")),
        }
    }
}

/// How it fits, and how evenly processor and memory would be used.
pub fn resources(wants: &Wants, node: &Node, fit: Fit) -> (u8, u8) {
    let of = |used: i64, wanted: i64, all: i64| {
        let used = used.saturating_add(wanted);
        // of a node that has none of it, all is used
        (if all <= 0 {
            MOST
        } else {
            used.saturating_mul(MOST) / all
        })
        .clamp(0, MOST)
    };
    let all = &node.facts.allocatable;
    let cpu = of(node.weighed.0, wants.weighed.0, all.cpu_milli);
    let memory = of(node.weighed.1, wants.weighed.1, all.memory);
    let most_allocated = (cpu + memory) / 2;
    let apart = (cpu - memory).abs();
    let fit = match fit {
        Fit::Worst => MOST - most_allocated,
        Fit::Best => most_allocated,
        Fit::Hybrid => (most_allocated - apart / 2).max(0),
    };
    // what was asked for, not what was made up for who asked for nothing
    let cpu = of(node.used.cpu_milli, wants.requests.cpu_milli, all.cpu_milli);
    let memory = of(node.used.memory, wants.requests.memory, all.memory);
    let balance = MOST - (cpu - memory).abs() / 2;
    let small = |score: i64| u8::try_from(score).unwrap_or(0);
    (small(fit), small(balance))
}

/// Images that are there already, by size; less for one that few nodes have, so that they are not all drawn there.
pub fn images(wants: &Wants, node: &NodeFacts, on: &HashMap<String, usize>, nodes: usize) -> u8 {
    const LEAST: i64 = 23 << 20;
    const ENOUGH: i64 = 1000 << 20;
    let size = |image: &String| {
        let with_tag = match image
            .rsplit_once('/')
            .map_or(image.as_str(), |(_, name)| name)
        {
            name if name.contains([':', '@']) => image.clone(),
            _ => format!("{image}:latest"),
        };
        let bytes = node.images.get(&with_tag)?;
        let on = *on.get(&with_tag)? as i64;
        Some(bytes.saturating_mul(on) / (nodes as i64).max(1))
    };
    let there: i64 = wants.images.iter().filter_map(size).sum();
    let enough = ENOUGH * (wants.images.len() as i64).max(1);
    let score = (there.clamp(LEAST, enough) - LEAST) * MOST / (enough - LEAST);
    u8::try_from(score).unwrap_or(0)
}

/// To 0 (the least) … 100 (the most).
pub fn between(raw: &mut [i64]) {
    let (Some(least), Some(most)) = (raw.iter().min().copied(), raw.iter().max().copied()) else {
        return;
    };
    for score in raw {
        *score = match most - least {
            0 => 0,
            range => (*score - least) * MOST / range,
        };
    }
}

/// To shares of the most; or of what it is short of the most.
pub fn shares(raw: &mut [i64], reversed: bool) {
    let most = raw.iter().max().copied().unwrap_or(0);
    for score in raw {
        let share = if most == 0 { 0 } else { *score * MOST / most };
        *score = if reversed { MOST - share } else { share };
    }
}

#[cfg(test)]
mod tests {
    use std::iter::empty;

    use serde_json::{from_value, json};

    use super::*;
    use crate::pod::PodFacts;

    fn wants(cpu: &str, memory: &str) -> PodFacts {
        let pod = from_value(json!({
            "metadata": {"name": "p", "uid": "p", "namespace": "a"},
            "spec": {"containers": [{"name": "c", "image": "example/one", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]},
        }));
        PodFacts::of(&pod.expect("a pod")).expect("names")
    }

    #[test]
    fn fits_part_ways_as_their_names_say() {
        let node = |cpu: &str, memory: &str, uses: &PodFacts| {
            let node = from_value(json!({
                "metadata": {"name": "n"}, "status": {"allocatable": {"cpu": cpu, "memory": memory, "pods": "9"}},
            }));
            let mut node = Node {
                facts: NodeFacts::of(&node.expect("a node")).expect("a name"),
                ..Node::default()
            };
            node.add(uses);
            node
        };
        let (empty_one, full) = (
            node("4", "8Gi", &wants("0", "0")),
            node("4", "8Gi", &wants("2", "4Gi")),
        );
        let lopsided = node("4", "8Gi", &wants("3", "1Gi"));
        let small = wants("1", "2Gi");
        assert!(full.lacks(small.wants(), empty(), empty()).is_empty());
        let score = |node: &Node, fit| resources(small.wants(), node, fit);
        assert_eq!(score(&empty_one, Fit::Worst), (75, 100));
        assert_eq!(score(&full, Fit::Worst), (25, 100));
        assert_eq!(score(&full, Fit::Best), (75, 100));
        assert_eq!(score(&lopsided, Fit::Best), (68, 69));
        assert_eq!(score(&lopsided, Fit::Hybrid).0, 37);
        assert_eq!(score(&full, Fit::Hybrid).0, 75);
    }

    #[test]
    fn an_image_that_is_there_counts_by_its_size() {
        let facts = |bytes: i64| NodeFacts {
            images: HashMap::from([("example/one:latest".to_owned(), bytes)]),
            ..NodeFacts::default()
        };
        let on = HashMap::from([("example/one:latest".to_owned(), 2)]);
        let pod = wants("1", "1");
        assert_eq!(images(pod.wants(), &facts(10 << 20), &on, 2), 0);
        assert_eq!(images(pod.wants(), &facts(2 << 30), &on, 2), 100);
        assert_eq!(images(pod.wants(), &facts(1 << 30), &on, 4), 50);
        assert_eq!(images(pod.wants(), &NodeFacts::default(), &on, 2), 0);
    }

    #[test]
    fn scores_are_put_between_0_and_100() {
        let mut raw = [-10, 0, 10];
        between(&mut raw);
        assert_eq!(raw, [0, 50, 100]);
        let mut raw = [0, 1, 4];
        shares(&mut raw, true);
        assert_eq!(raw, [100, 75, 0]);
        let mut raw = [0, 0];
        shares(&mut raw, true);
        assert_eq!(raw, [100, 100]);
    }
}
