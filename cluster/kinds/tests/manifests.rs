//! Manifests as people write them pass: their defaults are filled in, nothing is wrong with them, and doing it all again changes nothing.

mod of;

use berth_kinds::{all, human_duration, selectable};
use of::{kind_of, manifests};

#[test]
fn manifests_default_and_validate_and_the_second_time_changes_nothing() {
    let manifests = manifests();
    assert!(manifests.len() >= 50, "{}", manifests.len());
    for (name, written) in manifests {
        let kind = kind_of(&written);
        let mut object = written.clone();
        (kind.default)(&mut object);
        let defaulted = object.clone();
        (kind.default)(&mut object);
        assert_eq!(
            object, defaulted,
            "{name}: defaults of what has its defaults"
        );

        (kind.prepare_create)(&mut object);
        assert_eq!((kind.validate)(&object), [], "{name}: {object:#}");
        assert_eq!((kind.validate_create)(&object), [], "{name}: {object:#}");
        (kind.default)(&mut object);
        let kept = object.clone();

        // As kubectl applies it again.
        (kind.prepare_update)(&mut object, &kept);
        assert_eq!(object, kept, "{name}: an update that changes nothing");
        assert_eq!((kind.validate_update)(&object, &kept), [], "{name}");

        let mut again = kept.clone();
        (kind.to_stored)(&mut again);
        (kind.from_stored)(&mut again);
        assert_eq!(again, kept, "{name}: kept and read back");

        for column in kind.columns {
            let cell = column.cell(&object, 1_795_359_900);
            assert!(
                !cell.is_null() && !cell.is_object() && !cell.is_array(),
                "{name} {}: {cell}",
                column.name
            );
        }
        assert_eq!(
            selectable(kind, &object)[0].1,
            object["metadata"]["name"],
            "{name}"
        );
    }
}

#[test]
fn every_kind_is_found_and_can_be_shown() {
    for kind in all() {
        assert!(
            !kind.plural.is_empty() && !kind.singular.is_empty() && !kind.verbs.is_empty(),
            "{}",
            kind.kind
        );
        let kept = !kind.storage.is_empty();
        let can = |verb| kind.verbs.contains(&verb);
        assert_eq!(can("watch"), kept, "{} is kept, or it is not", kind.kind);
        assert_eq!(can("update"), kept, "{}", kind.kind);
        assert_eq!(can("delete"), kept, "{}", kind.kind);
        if !kind.columns.is_empty() {
            assert!(
                kind.columns.iter().any(|column| column.format == "name"),
                "{} has a column for its name",
                kind.kind
            );
        }
        let found = berth_kinds::by_kind(kind.group, kind.version, kind.kind).unwrap();
        assert_eq!(found.plural, kind.plural);
        let found = berth_kinds::by_plural(kind.group, kind.version, kind.plural).unwrap();
        assert_eq!(found.kind, kind.kind);
        let twice = all()
            .iter()
            .filter(|other| {
                !kind.storage.is_empty() && other.storage == kind.storage && other.kind != kind.kind
            })
            .count();
        assert_eq!(twice, 0, "{} has its prefix for itself", kind.kind);
    }
    assert_eq!(human_duration(90), "90s");
}
