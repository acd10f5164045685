//! How pods that ask for one scheduler are scheduled: several can be one process. What of upstream's `KubeSchedulerConfiguration` is taken; the rest is refused by name.

use serde::Deserialize;

use crate::{decide::Settings, score::Fit};

const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
/// Of a file.
const PROFILES: usize = 32;
/// Upstream's bound of a score's weight.
const HEAVIEST: i64 = 100;

#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// What pods call it: `spec.schedulerName`.
    pub name: String,
    pub settings: Settings,
}

/// What each score counts; 0: nothing. Upstream's plugins, with its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    pub fit: i64,
    pub balance: i64,
    pub images: i64,
    pub taints: i64,
    pub node_affinity: i64,
    pub spread: i64,
    pub pod_affinity: i64,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            fit: 1,
            balance: 1,
            images: 1,
            taints: 3,
            node_affinity: 2,
            spread: 2,
            pod_affinity: 2,
        }
    }
}

impl Weights {
    const NONE: Self = Self {
        fit: 0,
        balance: 0,
        images: 0,
        taints: 0,
        node_affinity: 0,
        spread: 0,
        pod_affinity: 0,
    };

    fn of(&mut self, plugin: &str) -> Option<&mut i64> {
        Some(match plugin {
            "NodeResourcesFit" => &mut self.fit,
            "NodeResourcesBalancedAllocation" => &mut self.balance,
            "ImageLocality" => &mut self.images,
            "TaintToleration" => &mut self.taints,
            "NodeAffinity" => &mut self.node_affinity,
            "PodTopologySpread" => &mut self.spread,
            "InterPodAffinity" => &mut self.pod_affinity,
            _ => return None,
        })
    }
}

const PREEMPTION: &str = "DefaultPreemption";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Configuration {
    api_version: String,
    kind: String,
    percentage_of_nodes_to_score: Option<u8>,
    #[serde(default)]
    profiles: Vec<Given>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Given {
    #[serde(default)]
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<u8>,
    #[serde(default)]
    plugins: Plugins,
    #[serde(default)]
    plugin_config: Vec<PluginConfig>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Plugins {
    #[serde(default)]
    multi_point: Set,
    #[serde(default)]
    score: Set,
    #[serde(default)]
    post_filter: Set,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Set {
    #[serde(default)]
    enabled: Vec<Plugin>,
    #[serde(default)]
    disabled: Vec<Plugin>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plugin {
    name: String,
    #[serde(default)]
    weight: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginConfig {
    name: String,
    args: FitArgs,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FitArgs {
    #[serde(default, rename = "apiVersion")]
    _api_version: Option<String>,
    #[serde(default, rename = "kind")]
    _kind: Option<String>,
    scoring_strategy: Strategy,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Strategy {
    r#type: String,
}

impl Profile {
    pub fn new(name: &str, settings: Settings) -> Self {
        Self {
            name: name.to_owned(),
            settings,
        }
    }

    /// Of a KubeSchedulerConfiguration.
    ///
    /// # Errors
    /// What of it is not known, not built or not allowed.
    pub fn all(configuration: serde_json::Value) -> Result<Vec<Self>, String> {
        let read: Configuration =
            serde_json::from_value(configuration).map_err(|error| error.to_string())?;
        if (read.api_version.as_str(), read.kind.as_str())
            != (API_VERSION, "KubeSchedulerConfiguration")
        {
            return Err(format!(
                "it is {} {}, and has to be {API_VERSION} KubeSchedulerConfiguration",
                read.api_version, read.kind
            ));
        }
        if read.profiles.is_empty() || read.profiles.len() > PROFILES {
            let count = read.profiles.len();
            return Err(format!(
                "profiles: there are {count}, and have to be 1 to {PROFILES}"
            ));
        }
        let mut profiles: Vec<Self> = Vec::new();
        for (at, given) in read.profiles.into_iter().enumerate() {
            let percentage = read.percentage_of_nodes_to_score;
            let profile = given
                .read(percentage)
                .map_err(|why| format!("profiles[{at}]: {why}"))?;
            if profiles.iter().any(|known| known.name == profile.name) {
                return Err(format!(
                    "profiles[{at}]: schedulerName: {:?} is another profile's already",
                    profile.name
                ));
            }
            profiles.push(profile);
        }
        Ok(profiles)
    }
}

impl Given {
    fn read(self, percentage: Option<u8>) -> Result<Profile, String> {
        let percentage = self
            .percentage_of_nodes_to_score
            .or(percentage)
            .unwrap_or(0);
        if percentage > 100 {
            return Err(format!(
                "percentageOfNodesToScore: {percentage} is more than 100"
            ));
        }
        let name = self
            .scheduler_name
            .unwrap_or_else(|| "default-scheduler".into());
        if name.is_empty() {
            return Err("schedulerName: it is empty".into());
        }
        let mut settings = Settings {
            percentage_of_nodes_to_score: percentage.into(),
            ..Settings::default()
        };
        let Plugins {
            multi_point,
            score,
            post_filter,
        } = self.plugins;
        for Plugin { name, .. } in &multi_point.disabled {
            match name.as_str() {
                PREEMPTION => settings.preempts = false,
                "NodeResourcesBalancedAllocation" => settings.weights.balance = 0,
                "ImageLocality" => settings.weights.images = 0,
                _ => {
                    return Err(format!(
                        "plugins.multiPoint.disabled: {name:?} can't be: what a node must have is always looked at"
                    ));
                }
            }
        }
        weigh(&mut settings.weights, "multiPoint", &multi_point.enabled)?;
        for Plugin { name, .. } in &score.disabled {
            match (name.as_str(), settings.weights.of(name)) {
                ("*", _) => settings.weights = Weights::NONE,
                (_, Some(weight)) => *weight = 0,
                _ => return Err(format!("plugins.score.disabled: there is no {name:?}")),
            }
        }
        weigh(&mut settings.weights, "score", &score.enabled)?;
        for Plugin { name, .. } in &post_filter.disabled {
            if !["*", PREEMPTION].contains(&name.as_str()) {
                return Err(format!("plugins.postFilter.disabled: there is no {name:?}"));
            }
            settings.preempts = false;
        }
        for Plugin { name, .. } in &post_filter.enabled {
            if name != PREEMPTION {
                return Err(format!("plugins.postFilter.enabled: there is no {name:?}"));
            }
            settings.preempts = true;
        }
        for PluginConfig { name, args } in &self.plugin_config {
            if name != "NodeResourcesFit" {
                return Err(format!("pluginConfig: arguments of {name:?} are not built"));
            }
            settings.fit = match args.scoring_strategy.r#type.as_str() {
                "LeastAllocated" => Fit::Worst,
                "MostAllocated" => Fit::Best,
                other => {
                    return Err(format!(
                        "pluginConfig: scoringStrategy.type: {other:?} is none of LeastAllocated, MostAllocated"
                    ));
                }
            };
        }
        Ok(Profile { name, settings })
    }
}

fn weigh(weights: &mut Weights, point: &str, enabled: &[Plugin]) -> Result<(), String> {
    for Plugin { name, weight } in enabled {
        let of = weights
            .of(name)
            .ok_or_else(|| format!("plugins.{point}.enabled: there is no score {name:?}"))?;
        // as upstream: one that says nothing weighs 1
        *of = match *weight {
            0 => 1,
            weight if (1..=HEAVIEST).contains(&weight) => weight,
            weight => {
                return Err(format!(
                    "plugins.{point}.enabled: the weight of {name:?} is {weight}, and has to be 1 to {HEAVIEST}"
                ));
            }
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(profiles: Value) -> Result<Vec<Profile>, String> {
        Profile::all(json!({
            "apiVersion": API_VERSION, "kind": "KubeSchedulerConfiguration", "percentageOfNodesToScore": 20, "profiles": profiles,
        }))
    }

    #[test]
    fn profiles_differ_in_what_counts() {
        let read = read(json!([
            {},
            {
                "schedulerName": "packs", "percentageOfNodesToScore": 100,
                "plugins": {
                    "score": {"disabled": [{"name": "*"}], "enabled": [{"name": "NodeResourcesFit", "weight": 5}, {"name": "ImageLocality"}]},
                    "postFilter": {"disabled": [{"name": "DefaultPreemption"}]},
                },
                "pluginConfig": [{"name": "NodeResourcesFit", "args": {"scoringStrategy": {"type": "MostAllocated"}}}],
            },
        ]))
        .expect("they are read");
        let settings = Settings {
            percentage_of_nodes_to_score: 20,
            ..Settings::default()
        };
        assert_eq!(read[0], Profile::new("default-scheduler", settings));
        let packs = Settings {
            fit: Fit::Best,
            percentage_of_nodes_to_score: 100,
            weights: Weights {
                fit: 5,
                images: 1,
                ..Weights::NONE
            },
            preempts: false,
        };
        assert_eq!(read[1], Profile::new("packs", packs));
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        let score = |plugin: Value| json!([{"plugins": {"score": {"enabled": [plugin]}}}]);
        for (profiles, why) in [
            (json!([]), "profiles: there are 0"),
            (json!([{}, {}]), "is another profile's already"),
            (json!([{"schedulerName": ""}]), "schedulerName: it is empty"),
            (
                json!([{"percentageOfNodesToScore": 101}]),
                "is more than 100",
            ),
            (score(json!({"name": "Mine"})), "there is no score \"Mine\""),
            (
                score(json!({"name": "ImageLocality", "weight": 101})),
                "has to be 1 to 100",
            ),
            (
                json!([{"plugins": {"filter": {"disabled": [{"name": "*"}]}}}]),
                "unknown field `filter`",
            ),
            (
                json!([{"plugins": {"multiPoint": {"disabled": [{"name": "NodePorts"}]}}}]),
                "what a node must have is always looked at",
            ),
            (
                json!([{"pluginConfig": [{"name": "PodTopologySpread", "args": {"scoringStrategy": {"type": "x"}}}]}]),
                "arguments of \"PodTopologySpread\" are not built",
            ),
        ] {
            let said = read(profiles).expect_err(why);
            assert!(said.contains(why), "{said}");
        }
        let other = Profile::all(json!({"apiVersion": "v1", "kind": "Pod"}));
        assert!(other.expect_err("another kind").contains("has to be"));
    }
}
