use super::*;

const NOW: u64 = 1_800_000_000;

fn key() -> Vec<u8> {
    EcdsaKeyPair::generate_pkcs8(
        &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
        &SystemRandom::new(),
    )
    .unwrap()
    .as_ref()
    .to_vec()
}

fn tokens() -> Tokens {
    let audiences = vec!["https://kubernetes.default.svc".to_owned()];
    Tokens::new(&key(), "https://issuer".to_owned(), audiences).unwrap()
}

fn ask() -> TokenAsk {
    TokenAsk {
        namespace: "ns".to_owned(),
        service_account: "sa".to_owned(),
        service_account_uid: "u1".to_owned(),
        pod: Some(("p".to_owned(), "u2".to_owned())),
        node: Some(("n".to_owned(), "u3".to_owned())),
        ..TokenAsk::default()
    }
}

fn forge(
    token: &str,
    header: Option<Value>,
    claims: impl FnOnce(&mut Value),
    sign: impl FnOnce(&[u8]) -> Vec<u8>,
) -> String {
    let parts: Vec<&str> = token.split('.').collect();
    let decode = |part| serde_json::from_slice::<Value>(&BASE64.decode(part).unwrap()).unwrap();
    let mut said = decode(parts[1]);
    claims(&mut said);
    let header = header.unwrap_or_else(|| decode(parts[0]));
    let signed = format!(
        "{}.{}",
        BASE64.encode(header.to_string()),
        BASE64.encode(said.to_string())
    );
    let signature = BASE64.encode(sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

#[test]
fn a_token_says_who_it_is_and_what_it_hangs_on() {
    let tokens = tokens();
    let issued = tokens.issue(&ask(), NOW).unwrap();
    assert_eq!(issued.expires, NOW + 3600);
    let verified = tokens.verify(&issued.token, &[], NOW).unwrap();
    assert_eq!(verified.user.username, "system:serviceaccount:ns:sa");
    assert_eq!(verified.user.uid, "u1");
    assert_eq!(
        verified.user.groups,
        [
            "system:serviceaccounts",
            "system:serviceaccounts:ns",
            crate::AUTHENTICATED
        ]
    );
    assert_eq!(
        verified.user.extra["authentication.kubernetes.io/pod-name"],
        ["p"]
    );
    assert_eq!(
        verified.user.extra["authentication.kubernetes.io/node-uid"],
        ["u3"]
    );
    let bound: Vec<_> = verified
        .bound
        .iter()
        .map(|b| (b.resource, b.name.as_str(), b.uid.as_str()))
        .collect();
    assert_eq!(
        bound,
        [("serviceaccounts", "sa", "u1"), ("pods", "p", "u2")]
    );
    assert_eq!(verified.audiences, ["https://kubernetes.default.svc"]);
}

#[test]
fn sec_api_08_what_a_token_is_bound_to_must_be_there() {
    let bound = Bound {
        resource: "pods",
        namespace: "ns".to_owned(),
        name: "p".to_owned(),
        uid: "u2".to_owned(),
        kept: None,
    };
    let since = |at: &str| json!({ "metadata": { "uid": "u2", "deletionTimestamp": at } });
    assert!(bound.holds(Some(&json!({ "metadata": { "uid": "u2" } })), NOW));
    assert!(!bound.holds(None, NOW));
    assert!(
        !bound.holds(Some(&json!({ "metadata": { "uid": "other" } })), NOW),
        "same name, new uid"
    );
    // 1800000000 is 2027-01-15T08:00:00Z.
    assert!(bound.holds(Some(&since("2027-01-15T07:59:01Z")), NOW));
    assert!(!bound.holds(Some(&since("2027-01-15T07:58:59Z")), NOW));
    assert!(!bound.holds(Some(&since("nonsense")), NOW));
    let unbound = Bound {
        uid: String::new(),
        ..bound
    };
    assert!(!unbound.holds(Some(&json!({ "metadata": { "uid": "" } })), NOW));
}

#[test]
fn sec_api_08_a_token_out_of_time_or_for_others_is_refused() {
    let tokens = tokens();
    let issued = tokens.issue(&ask(), NOW).unwrap().token;
    assert!(tokens.verify(&issued, &[], NOW + 3599).is_ok());
    assert!(tokens.verify(&issued, &[], NOW + 3600).is_err());
    assert!(tokens.verify(&issued, &[], NOW - 1).is_err());
    assert!(tokens.verify(&issued, &["vault".to_owned()], NOW).is_err());
    let vault = TokenAsk {
        audiences: vec!["vault".to_owned()],
        ..ask()
    };
    let vault = tokens.issue(&vault, NOW).unwrap().token;
    assert!(tokens.verify(&vault, &[], NOW).is_err());
    assert!(tokens.verify(&vault, &["vault".to_owned()], NOW).is_ok());
    for expiration in [1, 599, (1 << 32) + 1] {
        let refused = tokens.issue(
            &TokenAsk {
                expiration,
                ..ask()
            },
            NOW,
        );
        assert!(matches!(refused, Err(Error::Invalid(_))), "{expiration}");
    }
}

#[test]
fn sec_api_08_a_forged_token_is_refused() {
    let (ours, theirs) = (tokens(), tokens());
    let token = ours.issue(&ask(), NOW).unwrap().token;
    assert!(theirs.verify(&token, &[], NOW).is_err(), "of another key");
    let other = Tokens {
        issuer: "https://other".to_owned(),
        ..tokens()
    };
    let public = ours.key.public_key().as_ref().to_vec();
    let hmac = |signed: &[u8]| {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &public);
        ring::hmac::sign(&key, signed).as_ref().to_vec()
    };
    let with = |alg: &str| Some(json!({ "alg": alg, "kid": ours.kid }));
    let sign = |signed: &[u8]| {
        ours.key
            .sign(&ours.random, signed)
            .unwrap()
            .as_ref()
            .to_vec()
    };
    let become_root =
        |claims: &mut Value| claims["sub"] = json!("system:serviceaccount:kube-system:root");
    let forged = [
        forge(&token, with("none"), |_| {}, |_| vec![]),
        forge(&token, with("None"), |_| {}, |_| vec![]),
        forge(&token, with("HS256"), |_| {}, hmac),
        forge(&token, with("ES256"), |_| {}, hmac),
        forge(&token, with("RS256"), |_| {}, sign),
        forge(&token, Some(json!({ "alg": "ES256" })), |_| {}, sign),
        forge(
            &token,
            Some(json!({ "alg": "ES256", "kid": theirs.kid })),
            |_| {},
            sign,
        ),
        forge(
            &token,
            Some(json!({ "alg": "ES256", "kid": ours.kid, "crit": ["exp"] })),
            |_| {},
            sign,
        ),
        forge(&token, None, |_| {}, |_| vec![]),
        forge(&token, None, |_| {}, |_| vec![0; 64]),
        // Signed by us, but saying what ours never do.
        forge(&token, None, become_root, sign),
        forge(
            &token,
            None,
            |claims| claims["iss"] = json!(other.issuer),
            sign,
        ),
        forge(&token, None, |claims| claims["exp"] = json!("never"), sign),
        forge(&token, None, |claims| claims["exp"] = json!(null), sign),
        forge(&token, None, |claims| claims["nbf"] = json!(null), sign),
        forge(&token, None, |claims| claims["aud"] = json!({}), sign),
        forge(
            &token,
            None,
            |claims| claims["kubernetes.io"] = json!([]),
            sign,
        ),
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        format!("{token}."),
        format!("{token}="),
        format!("{token} "),
        "a".repeat(1 << 20),
    ];
    for token in forged {
        assert!(ours.verify(&token, &[], NOW).is_err(), "{token}");
    }
    // Any bit of it counts.
    for at in (0..token.len()).step_by(3) {
        let mut bytes = token.clone().into_bytes();
        bytes[at] ^= 1;
        if let Ok(changed) = String::from_utf8(bytes) {
            assert!(ours.verify(&changed, &[], NOW).is_err(), "byte {at}");
        }
    }
    assert!(ours.verify(&token, &[], NOW).is_ok());
}

/// As kube-controller-manager makes it: the claims, and the header's two.
#[test]
fn a_token_of_a_secret_holds_as_long_as_the_secret_has_it_sec_api_08() {
    let tokens = tokens();
    let any = tokens.issue(&ask(), NOW).unwrap().token;
    let claims = json!({
        "iss": "kubernetes/serviceaccount",
        "kubernetes.io/serviceaccount/namespace": "ns",
        "kubernetes.io/serviceaccount/secret.name": "s",
        "kubernetes.io/serviceaccount/service-account.name": "sa",
        "kubernetes.io/serviceaccount/service-account.uid": "u1",
        "sub": "system:serviceaccount:ns:sa",
    });
    let sign = |signed: &[u8]| {
        tokens
            .key
            .sign(&tokens.random, signed)
            .unwrap()
            .as_ref()
            .to_vec()
    };
    let saying = |claims: Value| forge(&any, None, |said| *said = claims, sign);
    let token = saying(claims.clone());
    let verified = tokens.verify(&token, &[], NOW).unwrap();
    assert_eq!(verified.user.username, "system:serviceaccount:ns:sa");
    assert_eq!(verified.user.uid, "u1");
    assert!(verified.user.extra.is_empty());
    assert_eq!(verified.audiences, tokens.audiences);
    assert!(tokens.verify(&token, &["vault".to_owned()], NOW).is_err());
    let [account, secret] = verified.bound.as_slice() else {
        panic!("{:?}", verified.bound)
    };
    assert_eq!(
        (
            account.resource,
            account.name.as_str(),
            account.uid.as_str()
        ),
        ("serviceaccounts", "sa", "u1")
    );
    assert_eq!(
        (
            secret.resource,
            secret.namespace.as_str(),
            secret.name.as_str()
        ),
        ("secrets", "ns", "s")
    );
    let own = tokens.issue_kept("ns", "sa", "u1", "s").unwrap();
    assert_eq!(tokens.claims(&own).unwrap(), claims);
    let kept = json!({"metadata": {}, "data": {"token": BASE64_STANDARD.encode(&token)}});
    assert!(secret.holds(Some(&kept), NOW));
    assert!(!secret.holds(None, NOW));
    for (path, value) in [
        ("/data/token", json!(BASE64_STANDARD.encode(&any))),
        ("/data", json!({})),
        (
            "/metadata",
            json!({"deletionTimestamp": "2027-01-15T08:00:00Z"}),
        ),
        (
            "/metadata",
            json!({"labels": {"kubernetes.io/legacy-token-invalid-since": "2027-01-14"}}),
        ),
    ] {
        let mut other = kept.clone();
        *other.pointer_mut(path).unwrap() = value;
        assert!(!secret.holds(Some(&other), NOW), "{other}");
    }
    for (claim, value) in [
        ("sub", json!("system:serviceaccount:kube-system:root")),
        ("sub", Value::Null),
        ("exp", json!(NOW + 1)),
        ("aud", json!(["vault"])),
        ("kubernetes.io/serviceaccount/secret.name", json!("")),
        (
            "kubernetes.io/serviceaccount/service-account.uid",
            Value::Null,
        ),
    ] {
        let mut other = claims.clone();
        other[claim] = value;
        assert!(
            tokens.verify(&saying(other.clone()), &[], NOW).is_err(),
            "{other}"
        );
    }
}

/// kube-controller-manager names the server's key so in the tokens that it makes.
#[test]
fn the_key_is_named_by_its_public_key_info() {
    let info = [&P256[..], tokens().key.public_key().as_ref()].concat();
    let (rest, parsed) =
        <x509_parser::x509::SubjectPublicKeyInfo<'_> as x509_parser::prelude::FromDer<_>>::from_der(&info).unwrap();
    assert!(rest.is_empty());
    assert!(matches!(
        parsed.parsed().unwrap(),
        x509_parser::public_key::PublicKey::EC(point) if point.key_size() == 256
    ));
    let tokens = tokens();
    let info = [&P256[..], tokens.key.public_key().as_ref()].concat();
    let digest = ring::digest::digest(&ring::digest::SHA256, &info);
    assert_eq!(tokens.kid, BASE64.encode(digest));
}

#[test]
fn others_can_check_a_token_by_the_published_key() {
    let tokens = tokens();
    let token = tokens.issue(&ask(), NOW).unwrap().token;
    let key = &tokens.jwks()["keys"][0];
    let part = |name: &str| BASE64.decode(key[name].as_str().unwrap()).unwrap();
    let public = [vec![4], part("x"), part("y")].concat();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, public)
        .verify(signed.as_bytes(), &BASE64.decode(signature).unwrap())
        .unwrap();
    assert_eq!(
        tokens.discovery("https://x/openid/v1/jwks")["issuer"],
        "https://issuer"
    );
}
