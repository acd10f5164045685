//! The image service.

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{
    Image, ImageFilter, ImageSpec, ImageStatusRequest, ListImagesRequest, PullImageRequest,
    RemoveImageRequest,
};
use tonic::Code;

use super::{
    Case, cases,
    scene::{Scene, refused},
};
use crate::cri::spec;

pub const CASES: &[Case] = cases![
    PullImage: alone [the_answer_names_the_image_and_may_be_repeated],
    PullImage: alone [an_image_is_pulled_by_digest],
    PullImage: [an_image_that_is_not_there_is_refused_by_its_name],
    PullImage: [a_name_that_is_none_is_refused],
    ImageStatus: alone [an_image_has_an_id_names_digests_and_a_size],
    ImageStatus: alone [it_is_found_by_name_id_and_digest],
    ImageStatus: [an_unknown_image_is_no_error_and_no_image],
    ImageStatus: alone [details_are_told_to_who_asks_for_them_alone],
    ListImages: alone [a_filter_finds_the_image_by_its_names],
    ListImages: alone [the_list_and_the_status_say_the_same],
    RemoveImage: alone [all_names_go_with_an_image],
    RemoveImage: [it_may_be_repeated_also_where_nobody_has_the_image],
    RemoveImage: alone [an_image_in_use_does_not_end_its_container],
    ImageFsInfo: [the_filesystem_of_images_has_a_place_a_time_and_a_use],
    ImageFsInfo: [the_filesystem_of_containers_is_told],
];

async fn own(s: &Scene) -> Result<Image> {
    s.cri
        .image(&s.image)
        .await?
        .with_context(|| format!("{} is not there", s.image))
}

async fn the_answer_names_the_image_and_may_be_repeated(s: &Scene) -> Result<()> {
    let first = s.cri.pull(&s.image).await?;
    let second = s.cri.pull(&s.image).await?;
    ensure!(!first.is_empty() && first == second, "{first} and {second}");
    let named = s
        .cri
        .image(&first)
        .await?
        .context("the answer names no image")?;
    ensure!(named.id == own(s).await?.id);
    Ok(())
}

async fn an_image_is_pulled_by_digest(s: &Scene) -> Result<()> {
    let image = own(s).await?;
    let digest = image.repo_digests.first().context("it has no digest")?;
    ensure!(digest.contains("@sha256:"), "{digest}");
    s.cri.pull(digest).await?;
    let named = s
        .cri
        .image(digest)
        .await?
        .context("it is not found by its digest")?;
    ensure!(named.id == image.id);
    ensure!(
        own(s).await?.repo_tags == image.repo_tags,
        "its tags are lost"
    );
    Ok(())
}

/// The repository of the image, under a tag that nobody has.
fn missing(s: &Scene) -> String {
    let end = s.image.rfind('/').unwrap_or(0);
    let colon = s.image[end..]
        .find([':', '@'])
        .map_or(s.image.len(), |at| end + at);
    format!("{}:no-such-tag", &s.image[..colon])
}

async fn an_image_that_is_not_there_is_refused_by_its_name(s: &Scene) -> Result<()> {
    let answer = s.cri.pull(&missing(s)).await;
    ensure!(format!("{answer:?}").contains("no-such-tag"), "{answer:?}");
    refused(answer, &[Code::NotFound])?;
    ensure!(s.cri.image(&missing(s)).await?.is_none());
    Ok(())
}

async fn a_name_that_is_none_is_refused(s: &Scene) -> Result<()> {
    for name in [
        "",
        "UPPER/case",
        "a b",
        "busybox:",
        "busybox@sha256:12",
        "http://x/y",
    ] {
        refused(s.cri.pull(name).await, &[]).context(name)?;
    }
    let nothing = s.cri.images().pull_image(PullImageRequest::default()).await;
    refused(nothing, &[])
}

async fn an_image_has_an_id_names_digests_and_a_size(s: &Scene) -> Result<()> {
    let image = own(s).await?;
    let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
    ensure!(
        id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{image:?}"
    );
    ensure!(image.size > 100_000, "{image:?}");
    ensure!(!image.repo_digests.is_empty(), "{image:?}");
    // Whole names: a kubelet compares them.
    let tagged = s
        .image
        .rsplit('/')
        .next()
        .is_some_and(|last| last.contains(':') && !last.contains('@'));
    ensure!(
        !tagged || image.repo_tags.iter().any(|tag| tag.ends_with(&s.image)),
        "{image:?}"
    );
    ensure!(
        image.uid.is_none() || image.username.is_empty(),
        "{image:?}"
    );
    Ok(())
}

async fn it_is_found_by_name_id_and_digest(s: &Scene) -> Result<()> {
    let image = own(s).await?;
    for name in [&image.id]
        .into_iter()
        .chain(&image.repo_tags)
        .chain(&image.repo_digests)
    {
        let found = s
            .cri
            .image(name)
            .await?
            .with_context(|| format!("{name} is not found"))?;
        ensure!(found == image, "{name}: {found:?}");
    }
    Ok(())
}

async fn an_unknown_image_is_no_error_and_no_image(s: &Scene) -> Result<()> {
    for name in [
        missing(s),
        format!("sha256:{}", "0".repeat(64)),
        "no.such.registry/at/all:1".into(),
    ] {
        ensure!(
            s.cri
                .image(&name)
                .await
                .with_context(|| name.clone())?
                .is_none(),
            "{name}"
        );
    }
    Ok(())
}

async fn details_are_told_to_who_asks_for_them_alone(s: &Scene) -> Result<()> {
    for verbose in [false, true] {
        let request = ImageStatusRequest {
            image: Some(spec(&s.image)),
            verbose,
        };
        let info = s
            .cri
            .images()
            .image_status(request)
            .await?
            .into_inner()
            .info;
        ensure!(info.is_empty() != verbose, "{verbose}: {info:?}");
    }
    Ok(())
}

async fn listed(s: &Scene, image: &str) -> Result<Vec<Image>> {
    let filter = Some(ImageFilter {
        image: Some(spec(image)),
    });
    let answer = s
        .cri
        .images()
        .list_images(ListImagesRequest { filter })
        .await?;
    Ok(answer.into_inner().images)
}

async fn a_filter_finds_the_image_by_its_names(s: &Scene) -> Result<()> {
    let image = own(s).await?;
    for name in [&s.image, &image.id].into_iter().chain(&image.repo_tags) {
        let list = listed(s, name).await?;
        ensure!(
            list.len() == 1 && list[0].id == image.id,
            "{name}: {list:?}"
        );
    }
    ensure!(listed(s, &missing(s)).await?.is_empty());
    let everything = [
        None,
        Some(ImageFilter::default()),
        Some(ImageFilter {
            image: Some(ImageSpec::default()),
        }),
    ];
    for filter in everything {
        let answer = s
            .cri
            .images()
            .list_images(ListImagesRequest { filter })
            .await?;
        let images = answer.into_inner().images;
        ensure!(images.iter().any(|other| other.id == image.id));
    }
    Ok(())
}

async fn the_list_and_the_status_say_the_same(s: &Scene) -> Result<()> {
    for image in s.cri.list_images().await? {
        let status = s.cri.image(&image.id).await?;
        ensure!(status.as_ref() == Some(&image), "{image:?} and {status:?}");
    }
    Ok(())
}

async fn all_names_go_with_an_image(s: &Scene) -> Result<()> {
    let image = own(s).await?;
    s.cri.remove_image(&image.id).await?;
    for name in [&image.id]
        .into_iter()
        .chain(&image.repo_tags)
        .chain(&image.repo_digests)
    {
        ensure!(s.cri.image(name).await?.is_none(), "{name} is left");
    }
    let left = s.cri.list_images().await?;
    ensure!(left.iter().all(|other| other.id != image.id));
    s.cri.pull(&s.image).await?;
    ensure!(own(s).await?.id == image.id);
    Ok(())
}

async fn it_may_be_repeated_also_where_nobody_has_the_image(s: &Scene) -> Result<()> {
    for _ in 0..2 {
        s.cri.remove_image(&missing(s)).await?;
        s.cri
            .remove_image(&format!("sha256:{}", "0".repeat(64)))
            .await?;
    }
    let nothing = s
        .cri
        .images()
        .remove_image(RemoveImageRequest::default())
        .await;
    refused(nothing, &[])
}

async fn an_image_in_use_does_not_end_its_container(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    // Removed or refused: both keep what runs.
    let _ = s.cri.remove_image(&s.image).await;
    let said = s.cri.exec(&id, &["echo", "still here"]).await;
    if s.cri.image(&s.image).await?.is_none() {
        s.cri.pull(&s.image).await?;
    }
    ensure!(said? == "still here");
    Ok(())
}

async fn the_filesystem_of_containers_is_told(s: &Scene) -> Result<()> {
    let info = s.cri.fs_info().await?;
    ensure!(!info.container_filesystems.is_empty(), "{info:?}");
    Ok(())
}

async fn the_filesystem_of_images_has_a_place_a_time_and_a_use(s: &Scene) -> Result<()> {
    let info = s.cri.fs_info().await?;
    let images = info
        .image_filesystems
        .first()
        .context("no filesystem of images")?;
    let place = images.fs_id.clone().unwrap_or_default().mountpoint;
    ensure!(place.starts_with('/'), "{images:?}");
    ensure!(
        images.timestamp > 0 && images.used_bytes.is_some(),
        "{images:?}"
    );
    ensure!(images.inodes_used.is_some(), "{images:?}");
    Ok(())
}
