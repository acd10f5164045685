//! Names of images, as far as defaults and rules look at them.

/// Whether the image's tag is `latest`, written or meant: one without tag and digest has it.
pub(crate) fn tag_is_latest(image: &str) -> bool {
    let (name, digest) = image
        .split_once('@')
        .map_or((image, None), |(n, d)| (n, Some(d)));
    // A colon before the last slash is a port.
    let last = name.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => digest.is_none() && !image.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::tag_is_latest;

    #[test]
    fn an_image_without_tag_and_digest_is_the_latest() {
        for (image, latest) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1.27", false),
            ("registry:5000/nginx", true),
            ("registry:5000/nginx:1.27", false),
            ("registry:5000/a/b:latest", true),
            ("nginx@sha256:0123", false),
            ("nginx:latest@sha256:0123", true),
            ("", false),
        ] {
            assert_eq!(tag_is_latest(image), latest, "{image}");
        }
    }
}
