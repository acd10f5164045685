//! Classes of block I/O: what an NRI plugin names for a container, by the configuration's words (`[blockio.classes]`).

use std::{
    collections::BTreeMap,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use oci_spec::runtime::{
    LinuxBlockIo, LinuxThrottleDevice, LinuxThrottleDeviceBuilder, LinuxWeightDeviceBuilder,
};
use serde::{Deserialize, Serialize};

/// What the runtime specification has for a weight.
const WEIGHTS: std::ops::RangeInclusive<u16> = 10..=1000;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlockIo {
    pub classes: BTreeMap<String, Class>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Class {
    /// 10 to 1000. Only a scheduler that shares has it (BFQ; on cgroup v2 also io.cost).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    pub devices: Vec<Devices>,
}

/// The same limits for some devices, each for itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Devices {
    pub paths: Vec<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Bytes a second; none and 0: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_bps: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_bps: Option<u64>,
    /// Operations a second
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_iops: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_iops: Option<u64>,
}

impl BlockIo {
    /// What can be told from the configuration alone.
    pub fn check(&self) -> Result<(), String> {
        for (name, class) in &self.classes {
            let key = |rest: &str| format!("key `blockio.classes.{name}{rest}`");
            if name.is_empty() {
                return Err(key(": a class has a name"));
            }
            let weights = class.devices.iter().filter_map(|of| of.weight);
            for weight in weights.chain(class.weight) {
                if !WEIGHTS.contains(&weight) {
                    return Err(key(&format!(": weight {weight} is not in 10 to 1000")));
                }
            }
            for of in &class.devices {
                if of.paths.is_empty() {
                    return Err(key(".devices: one of them names no paths"));
                }
                if let Some(path) = of.paths.iter().find(|path| !path.is_absolute()) {
                    let path = path.display();
                    return Err(key(&format!(".devices.paths: {path} is not absolute")));
                }
            }
        }
        Ok(())
    }

    /// The limits of a class, by the devices' numbers as they are now. A device that another class limits and this one does not has no limit:
    /// so a container can go from one class to another.
    pub fn limits_of(&self, name: &str) -> Result<LinuxBlockIo, String> {
        let class = self.classes.get(name).ok_or_else(|| {
            let classes: Vec<&str> = self.classes.keys().map(String::as_str).collect();
            format!(
                "class {name:.80?} is not in this node's configuration ([blockio.classes] has {})",
                match classes.as_slice() {
                    [] => "none".to_owned(),
                    names => names.join(", "),
                }
            )
        })?;
        let mut rates: BTreeMap<(i64, i64), [u64; 4]> = BTreeMap::new();
        let all = self.classes.values().flat_map(|class| &class.devices);
        for path in all.flat_map(|of| &of.paths) {
            // Where it is another class's matter that it is not there.
            if let Ok(device) = number(path) {
                rates.insert(device, [0; 4]);
            }
        }
        let mut weights = Vec::new();
        for of in &class.devices {
            for path in &of.paths {
                let device = number(path)?;
                let asked = [of.read_bps, of.write_bps, of.read_iops, of.write_iops];
                let rates = rates.entry(device).or_default();
                for (rate, asked) in rates.iter_mut().zip(asked) {
                    *rate = asked.unwrap_or(*rate);
                }
                if let Some(weight) = of.weight {
                    let built = LinuxWeightDeviceBuilder::default()
                        .major(device.0)
                        .minor(device.1)
                        .weight(weight)
                        .build();
                    weights.push(built.map_err(|error| error.to_string())?);
                }
            }
        }
        let throttles = |which: usize| -> Result<Option<Vec<LinuxThrottleDevice>>, String> {
            let built = rates.iter().map(|((major, minor), rates)| {
                LinuxThrottleDeviceBuilder::default()
                    .major(*major)
                    .minor(*minor)
                    .rate(rates[which])
                    .build()
                    .map_err(|error| error.to_string())
            });
            let built = built.collect::<Result<Vec<_>, _>>()?;
            Ok((!built.is_empty()).then_some(built))
        };
        let mut limits = LinuxBlockIo::default();
        limits
            .set_weight(class.weight)
            .set_weight_device((!weights.is_empty()).then_some(weights))
            .set_throttle_read_bps_device(throttles(0)?)
            .set_throttle_write_bps_device(throttles(1)?)
            .set_throttle_read_iops_device(throttles(2)?)
            .set_throttle_write_iops_device(throttles(3)?);
        Ok(limits)
    }
}

/// Of a block device.
fn number(path: &Path) -> Result<(i64, i64), String> {
    let meta = std::fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if !meta.file_type().is_block_device() {
        return Err(format!("{} is no block device", path.display()));
    }
    let device = meta.rdev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    Ok((major.into(), minor.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(text: &str) -> BlockIo {
        toml::from_str(text).unwrap()
    }

    /// Some block device of this machine: they have nodes of their names.
    fn device() -> (PathBuf, String) {
        let found = std::fs::read_dir("/sys/block").unwrap().find_map(|entry| {
            let entry = entry.unwrap();
            let number = std::fs::read_to_string(entry.path().join("dev")).ok()?;
            let path = Path::new("/dev").join(entry.file_name());
            path.exists().then(|| (path, number.trim().to_owned()))
        });
        found.expect("a block device")
    }

    #[test]
    fn a_class_is_the_limits_of_the_devices_that_it_names() {
        let (path, number) = device();
        let config = classes(&format!(
            "[classes.slow]\nweight = 50\ndevices = [{{ paths = [{path:?}], read_bps = 1048576, write_iops = 9 }}]\n[classes.free]\n"
        ));
        config.check().unwrap();
        for (name, read_bps, write_iops, weight) in
            [("slow", 1 << 20, 9, Some(50)), ("free", 0, 0, None)]
        {
            let limits = config.limits_of(name).unwrap();
            assert_eq!(limits.weight(), weight);
            let only = |list: &Option<Vec<LinuxThrottleDevice>>| {
                let [of] = list.as_deref().unwrap() else {
                    panic!("{list:?}")
                };
                assert_eq!(format!("{}:{}", of.major(), of.minor()), number);
                of.rate()
            };
            assert_eq!(only(limits.throttle_read_bps_device()), read_bps);
            assert_eq!(only(limits.throttle_write_bps_device()), 0);
            assert_eq!(only(limits.throttle_write_iops_device()), write_iops);
        }
    }

    #[test]
    fn a_class_or_a_device_that_is_not_there_is_named() {
        let config = classes(
            "[classes.gone]\ndevices = [{ paths = [\"/dev/no-such\"] }]\n[classes.file]\ndevices = [{ paths = [\"/etc/passwd\"] }]\n[classes.fine]\n",
        );
        for (name, says) in [
            ("gone", "/dev/no-such"),
            ("file", "is no block device"),
            ("other", "file, fine, gone"),
        ] {
            let error = config.limits_of(name).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        config.limits_of("fine").unwrap();
        let error = BlockIo::default().limits_of("x").unwrap_err();
        assert!(error.contains("has none"), "{error}");
    }

    #[test]
    fn classes_that_make_no_sense_are_refused_by_their_key() {
        for (text, says) in [
            ("[classes.a]\nweight = 9", "10 to 1000"),
            (
                "[classes.a]\ndevices = [{ paths = [\"/dev/x\"], weight = 1001 }]",
                "10 to 1000",
            ),
            ("[classes.a]\ndevices = [{ read_bps = 1 }]", "no paths"),
            (
                "[classes.a]\ndevices = [{ paths = [\"sda\"] }]",
                "not absolute",
            ),
        ] {
            let error = classes(text).check().unwrap_err();
            assert!(
                error.contains("blockio.classes.a") && error.contains(says),
                "{error}"
            );
        }
        for text in ["[classes.a]\nread_bps = 1", "[classes.a]\nweight = \"x\""] {
            assert!(toml::from_str::<BlockIo>(text).is_err(), "{text}");
        }
    }
}
