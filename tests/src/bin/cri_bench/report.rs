//! The figures as a table and as JSON.

use berth_tests::figures::quantile;
use serde_json::{Value, json};

use crate::{Server, weight};

pub fn report(servers: &[Server]) -> Value {
    let mut all = json!({});
    println!(
        "{:<32} {:<20} {:>8} {:>8} {:>8}   of the first",
        "ms", "", "median", "p95", "p99"
    );
    for figure in [
        "pod up, host network",
        "pod up, bridge",
        "ExecSync",
        "stop + remove, host network",
        "stop + remove, bridge",
        "RunPodSandbox, host network",
        "RunPodSandbox, bridge",
        "what the network adds",
        "attach, beside the shim's start",
        "RunPodSandbox, 10 in flight",
        "a pod of 10 in flight",
        "RunPodSandbox, 50 in flight",
        "a pod of 50 in flight",
    ] {
        let of_first = servers[0]
            .figures
            .get(figure)
            .map(|values| quantile(values, 0.5));
        for server in servers {
            let Some(values) = server.figures.get(figure) else {
                continue;
            };
            let [median, p95, p99] = [0.5, 0.95, 0.99].map(|part| quantile(values, part));
            let ratio = of_first.map(|first| median / first).unwrap_or(f64::NAN);
            println!(
                "{figure:<32} {:<20} {median:>8.1} {p95:>8.1} {p99:>8.1}   {ratio:>5.2}",
                server.name
            );
            all[&server.name][figure] =
                json!({"median_ms": median, "p95_ms": p95, "p99_ms": p99, "runs": values.len()});
        }
    }
    println!();
    for figure in weight::FIGURES {
        for server in servers {
            let Some(value) = server.memory.get(figure) else {
                continue;
            };
            println!(
                "{:<32} {:<20} {value:>8.2}            PSS",
                figure, server.name
            );
            all[&server.name][figure] = json!(value);
        }
    }
    all
}
