//! What a cgroup has read from and written to block devices.

use super::{Error, stats::Files};

/// Operations and bytes of one block device.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct DeviceIo {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// Devices that one cgroup is asked of: a container writes to one or two, a node has some dozens.
const MAX_DEVICES: usize = 64;

pub(super) fn read(files: &Files, v2: bool) -> Result<Vec<DeviceIo>, Error> {
    if v2 {
        return Ok(from_v2(&files.text("io", "io.stat")?));
    }
    Ok(from_v1(
        &files.text("blkio", "blkio.throttle.io_service_bytes_recursive")?,
        &files.text("blkio", "blkio.throttle.io_serviced_recursive")?,
    ))
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`
fn from_v2(text: &str) -> Vec<DeviceIo> {
    let mut devices = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(device) = at(&mut devices, words.next()) else {
            continue;
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let place = match key {
                "rbytes" => &mut device.read_bytes,
                "wbytes" => &mut device.write_bytes,
                "rios" => &mut device.reads,
                "wios" => &mut device.writes,
                _ => continue,
            };
            *place = value.parse().unwrap_or(0);
        }
    }
    devices
}

/// `8:0 Read 4096`, in a file of bytes and one of operations.
fn from_v1(bytes: &str, operations: &str) -> Vec<DeviceIo> {
    let mut devices = Vec::new();
    for (text, counts_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let Some(device) = at(&mut devices, words.next()) else {
                continue;
            };
            let (Some(operation), Some(value)) = (words.next(), words.next()) else {
                continue;
            };
            let place = match (operation, counts_bytes) {
                ("Read", true) => &mut device.read_bytes,
                ("Write", true) => &mut device.write_bytes,
                ("Read", false) => &mut device.reads,
                ("Write", false) => &mut device.writes,
                _ => continue,
            };
            *place = value.parse().unwrap_or(0);
        }
    }
    devices
}

/// The device that a line begins with; `None` for the line of totals, and for more than [`MAX_DEVICES`].
fn at<'a>(devices: &'a mut Vec<DeviceIo>, word: Option<&str>) -> Option<&'a mut DeviceIo> {
    let (major, minor) = word?.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    let known = devices
        .iter()
        .position(|device| (device.major, device.minor) == (major, minor));
    let index = match known {
        Some(index) => index,
        None if devices.len() < MAX_DEVICES => {
            devices.push(DeviceIo {
                major,
                minor,
                ..DeviceIo::default()
            });
            devices.len() - 1
        }
        None => return None,
    };
    devices.get_mut(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_tell_the_same() {
        let told = vec![
            DeviceIo {
                major: 8,
                minor: 16,
                read_bytes: 4096,
                write_bytes: 512,
                reads: 2,
                writes: 1,
            },
            DeviceIo {
                major: 253,
                minor: 0,
                write_bytes: 9,
                writes: 3,
                ..DeviceIo::default()
            },
        ];
        assert_eq!(
            from_v1(
                "8:16 Read 4096\n8:16 Write 512\n8:16 Sync 1\n8:16 Total 4608\n253:0 Write 9\nTotal 4617\n",
                "8:16 Read 2\n8:16 Write 1\n253:0 Write 3\nTotal 6\n",
            ),
            told
        );
        assert_eq!(
            from_v2(
                "8:16 rbytes=4096 wbytes=512 rios=2 wios=1 dbytes=0 dios=0\n253:0 wbytes=9 wios=3\n"
            ),
            told
        );
        assert_eq!(from_v1("Total 0\n", "Total 0\n"), []);
        assert_eq!(from_v2("nonsense\n8:x rbytes=1\n"), []);
    }

    #[test]
    fn devices_are_bounded() {
        let text: String = (0..1000).map(|n| format!("8:{n} rbytes=1\n")).collect();
        assert_eq!(from_v2(&text).len(), MAX_DEVICES);
    }
}
