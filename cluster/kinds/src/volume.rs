//! What a PersistentVolume has and what a PersistentVolumeClaim wants, as far as they must suit each other: for whoever binds them.

use crate::Quantity;

/// Of a volume or of a claim. A claim's selector and a volume's nodes are not among it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Room {
    /// Of storage; empty: none.
    pub class: String,
    /// Of its attributes (VolumeAttributesClass); empty: none.
    pub attributes: String,
    pub access_modes: Vec<String>,
    /// A device, no file system.
    pub is_block: bool,
    /// In thousand millionths of a byte, as quantities are counted.
    pub nano_bytes: i128,
}

impl Room {
    /// `storage` is a quantity; `volume_mode` is `Filesystem` where nothing is said.
    pub fn new(
        class: Option<&str>,
        attributes: Option<&str>,
        access_modes: Option<&[String]>,
        volume_mode: Option<&str>,
        storage: Option<&str>,
    ) -> Self {
        let quantity = storage.and_then(Quantity::parse);
        Self {
            class: class.unwrap_or_default().to_owned(),
            attributes: attributes.unwrap_or_default().to_owned(),
            access_modes: access_modes.unwrap_or_default().to_vec(),
            is_block: volume_mode == Some("Block"),
            nano_bytes: quantity.map_or(0, |quantity| quantity.nano),
        }
    }

    /// Whether a volume of this is enough for `claim`.
    pub fn serves(&self, claim: &Self) -> bool {
        self.class == claim.class
            && self.attributes == claim.attributes
            && self.is_block == claim.is_block
            && self.nano_bytes >= claim.nano_bytes
            && claim
                .access_modes
                .iter()
                .all(|mode| self.access_modes.contains(mode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_serves_whoever_wants_no_more() {
        let room = |class, modes: &[&str], mode, storage| {
            let modes: Vec<String> = modes.iter().map(|&mode| mode.to_owned()).collect();
            Room::new(class, None, Some(&modes), mode, Some(storage))
        };
        let (once, many) = ("ReadWriteOnce", "ReadOnlyMany");
        let volume = room(Some("local"), &[once, many], None, "10Gi");
        for (claim, serves) in [
            (
                room(Some("local"), &[once], Some("Filesystem"), "10Gi"),
                true,
            ),
            (room(Some("local"), &[many, once], None, "1"), true),
            (room(Some("local"), &[once], None, "10.1Gi"), false),
            (room(Some("local"), &[once], Some("Block"), "1Gi"), false),
            (room(Some("local"), &["ReadWriteMany"], None, "1Gi"), false),
            (room(None, &[once], None, "1Gi"), false),
            (room(Some("other"), &[once], None, "1Gi"), false),
        ] {
            assert_eq!(volume.serves(&claim), serves, "{claim:?}");
        }
    }
}
