//! Devices, mounts and network devices of a container, as plugins want them.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use berth_nri::{
    adjustment::removal,
    api::{self, Field},
};
use berth_proto::cri;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, LinuxNetDevice, Mount};

use super::{Target, plain, rule, rules};
use crate::error::Error;

/// Bytes of a network device's name (IFNAMSIZ, less its NUL).
const MAX_DEVICE_NAME: usize = 15;

impl Target<'_> {
    /// Beside those that the container asks for itself.
    pub(super) fn cdi(&mut self, adjust: &[api::CDIDevice]) -> Result<(), Error> {
        if adjust.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = adjust.iter().map(|device| device.name.as_str()).collect();
        let what = format!("CDI devices {names:?}");
        let asked = cri::ContainerConfig {
            cdi_devices: names
                .iter()
                .map(|name| cri::CdiDevice {
                    name: name.to_string(),
                })
                .collect(),
            ..Default::default()
        };
        let wrong = |e: berth_spec::Error| self.wrong(Field::CdiDevices, &what, &e.to_string());
        let mut names = berth_spec::cdi_devices(&asked).map_err(wrong)?;
        let have = berth_spec::cdi_devices(self.config).map_err(wrong)?;
        names.retain(|name| !have.contains(name));
        let dirs = &self.pod.node.config.runtime.cdi_spec_dirs;
        let mut spec = self.spec.clone();
        berth_spec::inject_cdi(&mut spec, &names, dirs).map_err(wrong)?;
        *self.spec = spec;
        Ok(())
    }

    pub(super) fn mounts(&mut self, adjust: &[api::Mount]) -> Result<(), Error> {
        if adjust.is_empty() {
            return Ok(());
        }
        let mut mounts = self.spec.mounts().clone().unwrap_or_default();
        let mut propagation = None;
        for mount in adjust {
            let place = removal(&mount.destination).unwrap_or(&mount.destination);
            if !plain(place) || place == "/" {
                let what = format!("mount at {place:?}");
                return Err(self.wrong(Field::Mounts, &what, "it is no plain absolute path"));
            }
            let at = Path::new(place);
            mounts.retain(|have| have.destination() != at);
            if removal(&mount.destination).is_some() {
                continue;
            }
            let texts = [&mount.type_, &mount.source];
            if texts
                .into_iter()
                .chain(&mount.options)
                .any(|text| text.contains('\0'))
            {
                let what = format!("mount at {place:?}");
                return Err(self.wrong(Field::Mounts, &what, "a NUL is in it"));
            }
            let has = |names: [&str; 2]| mount.options.iter().any(|o| names.contains(&o.as_str()));
            if has(["shared", "rshared"]) {
                propagation = Some("rshared");
            } else if has(["slave", "rslave"]) {
                propagation = propagation.or(Some("rslave"));
            }
            let mut made = Mount::default();
            made.set_destination(at.components().collect())
                .set_typ(Some(mount.type_.clone()).filter(|typ| !typ.is_empty()))
                .set_source(
                    Some(PathBuf::from(&mount.source)).filter(|s| !s.as_os_str().is_empty()),
                )
                .set_options(Some(mount.options.clone()));
            mounts.push(made);
        }
        // A mount comes after those that it lies in.
        mounts.sort_by_key(|mount| mount.destination().components().count());
        self.spec.set_mounts(Some(mounts));
        if let (Some(wanted), Some(linux)) = (propagation, self.spec.linux_mut()) {
            let has = linux.rootfs_propagation().clone();
            if has.as_deref() != Some("rshared") && has.as_deref() != Some("shared") {
                linux.set_rootfs_propagation(Some(wanted.to_owned()));
            }
        }
        Ok(())
    }

    pub(super) fn devices(&mut self, adjust: &[api::LinuxDevice]) -> Result<(), Error> {
        for device in adjust {
            let path = removal(&device.path).unwrap_or(&device.path);
            let what = format!("device {path:?}");
            if !plain(path) || !Path::new(path).starts_with("/dev") || path == "/dev" {
                return Err(self.wrong(Field::Devices, &what, "it is no plain path below /dev"));
            }
            if removal(&device.path).is_some() {
                self.drop_device(Path::new(path));
                continue;
            }
            let typ = match device.type_.as_str() {
                "c" => LinuxDeviceType::C,
                "b" => LinuxDeviceType::B,
                "u" => LinuxDeviceType::U,
                "p" => LinuxDeviceType::P,
                _ => {
                    return Err(self.wrong(
                        Field::Devices,
                        &what,
                        "its type is none of b, c, u, p",
                    ));
                }
            };
            self.drop_device(Path::new(path));
            let mut made = LinuxDevice::default();
            made.set_path(PathBuf::from(path))
                .set_typ(typ)
                .set_major(device.major)
                .set_minor(device.minor)
                .set_file_mode(device.file_mode.as_ref().map(|mode| mode.value))
                .set_uid(device.uid.as_ref().map(|id| id.value))
                .set_gid(device.gid.as_ref().map(|id| id.value));
            let rule = rule(
                true,
                Some(typ),
                Some(device.major),
                Some(device.minor),
                "rwm",
            );
            let Some(linux) = self.spec.linux_mut() else {
                return Ok(());
            };
            linux.devices_mut().get_or_insert_default().push(made);
            if typ != LinuxDeviceType::P {
                rules(linux).push(rule);
            }
        }
        Ok(())
    }

    /// Of the node, moved into the pod's network namespace when the container is made, with their addresses (runtime spec 1.3). When that namespace ends the
    /// kernel gives those of hardware back to the node, and removes the others.
    pub(super) fn net_devices(
        &mut self,
        adjust: &HashMap<String, api::LinuxNetDevice>,
    ) -> Result<(), Error> {
        if adjust.is_empty() {
            return Ok(());
        }
        let mut devices = HashMap::new();
        for (name, device) in adjust {
            let is_removed = removal(name).is_some();
            let name = removal(name).unwrap_or(name);
            let what = format!("network device {name:?}");
            let wrong = |why| Err(self.wrong(Field::LinuxNetDevices, &what, why));
            if self.pod.host_network() {
                return wrong("the pod is on the node's network");
            }
            let inside = Some(device.name.as_str()).filter(|inside| !inside.is_empty());
            if !is_device_name(name) || !inside.is_none_or(is_device_name) {
                return wrong("that is no name of a network device");
            }
            if is_removed {
                continue;
            }
            let mut made = LinuxNetDevice::default();
            made.set_name(inside.map(str::to_owned));
            devices.insert(name.to_owned(), made);
        }
        if let Some(linux) = self.spec.linux_mut() {
            linux.set_net_devices(Some(devices).filter(|devices| !devices.is_empty()));
        }
        Ok(())
    }

    /// The node, and the right to open it where no other node of the container needs it.
    fn drop_device(&mut self, path: &Path) {
        let Some(linux) = self.spec.linux_mut() else {
            return;
        };
        let nodes = linux.devices_mut().get_or_insert_default();
        let Some(at) = nodes.iter().position(|node| node.path() == path) else {
            return;
        };
        let gone = nodes.remove(at);
        let number = |node: &LinuxDevice| (node.typ(), node.major(), node.minor());
        if !nodes.iter().any(|node| number(node) == number(&gone)) {
            rules(linux).retain(|rule| {
                !(rule.allow()
                    && rule.typ() == Some(gone.typ())
                    && rule.major() == Some(gone.major())
                    && rule.minor() == Some(gone.minor()))
            });
        }
    }
}

/// As the kernel's dev_valid_name has it.
fn is_device_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= MAX_DEVICE_NAME
        && !name.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_device_is_named_as_the_kernel_takes_it() {
        for (name, taken) in [
            ("eth0", true),
            ("a23456789012345", true),
            ("a234567890123456", false),
            ("", false),
            ("..", false),
            ("a/b", false),
            ("a b", false),
            ("a:1", false),
            ("a\0", false),
        ] {
            assert_eq!(is_device_name(name), taken, "{name:?}");
        }
    }
}
