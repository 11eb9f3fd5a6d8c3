//! Who is let in: users, tokens, NKeys, credentials files and certificates, against servers that ask for them.

use brokers::nats::{Access, ConnectError};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use super::*;

fn configured(configuration: &str) -> servers::Nats {
    let _ = rustls::crypto::ring::default_provider().install_default();
    servers::Nats::start_configured(configuration).expect("a NATS server: run tests/run, which installs one")
}

/// The server's address with something before the host.
fn with(server: &servers::Nats, credentials: &str) -> String {
    server.url().replace("nats://", &format!("nats://{credentials}"))
}

/// A message goes in and comes out.
async fn works(connection: Connection) {
    let client = connection.client();
    client.flush().await.expect("the server answers");
    let nats = Nats { connection, client, name: "own".to_owned() };
    nats.publisher().check().await.expect("the stream is made");
    let results = publish_all(&nats.publisher(), &[nats.outgoing(keyed(1, 1).remove(0))]).await;
    assert_eq!(results, [Ok(())]);
    assert_eq!(receive_all(&mut *nats.subscriber("g").await, 1).await.len(), 1);
}

/// The start ends, with the address and without what was given.
fn is_refused(connected: Result<Connection, ConnectError>, server: &servers::Nats) -> String {
    let error = connected.expect_err("it is not let in");
    let text = format!("{error} {error:?}");
    assert!(matches!(error, ConnectError::Refused { .. }), "{text}");
    assert!(text.contains(&server.url().replace("nats://", "")) && !text.contains("s3cret"), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_and_password_of_the_address_are_sent_decoded() {
    let server = configured(r#"authorization { user: "re:lay", password: "s3cret/@: é%" }"#);
    works(connect(&with(&server, "re%3Alay:s3cret%2F%40%3A%20%C3%A9%25@")).await.expect("it is let in"))
        .await;
    let access = Access::parse(&server.url()).expect("an address").with_user("re:lay", "s3cret/@: é%");
    works(access.connect().await.expect("it is let in")).await;
    for credentials in ["", "re%3Alay:s3cret@", "s3cret@"] {
        let text = is_refused(connect(&with(&server, credentials)).await, &server);
        assert!(text.contains("authorization violation"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_the_address_is_sent() {
    let server = configured(r#"authorization { token: "s3cret/token" }"#);
    works(connect(&with(&server, "s3cret%2Ftoken@")).await.expect("it is let in")).await;
    let access = Access::parse(&server.url()).expect("an address").with_token("s3cret/token");
    works(access.connect().await.expect("it is let in")).await;
    is_refused(connect(&with(&server, "s3cret@")).await, &server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nkey_signs() {
    let (ours, other) = (nkeys::KeyPair::new_user(), nkeys::KeyPair::new_user());
    let server = configured(&format!("authorization {{ users: [ {{ nkey: {} }} ] }}", ours.public_key()));
    let access = Access::parse(&server.url()).expect("an address");
    let seed = ours.seed().expect("a seed");
    works(access.clone().with_nkey(format!("{seed}\n")).connect().await.expect("it is let in")).await;
    is_refused(access.clone().with_nkey(other.seed().expect("a seed")).connect().await, &server);
    is_refused(access.with_nkey("s3cret").connect().await, &server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credentials_file_signs() {
    let (operator, account, user) =
        (nkeys::KeyPair::new_operator(), nkeys::KeyPair::new_account(), nkeys::KeyPair::new_user());
    let operators = jwt(&operator, &operator, "operator", "");
    let limits = r#","limits":{"subs":-1,"data":-1,"payload":-1,"imports":-1,"exports":-1,"wildcards":true,"conn":-1,
        "leaf":-1,"mem_storage":-1,"disk_storage":-1,"streams":-1,"consumer":-1}"#;
    let accounts = jwt(&operator, &account, "account", limits);
    let users = jwt(&account, &user, "user", r#","pub":{},"sub":{},"subs":-1,"data":-1,"payload":-1"#);
    let system = nkeys::KeyPair::new_account();
    let systems = jwt(&operator, &system, "account", "");
    let (system, account) = (system.public_key(), account.public_key());
    let server = configured(&format!(
        "operator: {operators}\nsystem_account: {system}\nresolver: MEMORY\n\
         resolver_preload: {{ {system}: {systems}, {account}: {accounts} }}\n",
    ));
    let access = Access::parse(&server.url()).expect("an address");
    let seed = user.seed().expect("a seed");
    let credentials = format!(
        "-----BEGIN NATS USER JWT-----\n{users}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    works(access.clone().with_credentials(credentials).connect().await.expect("it is let in")).await;
    is_refused(access.clone().connect().await, &server);
    let error = access.with_credentials("s3cret").connect().await.expect_err("no credentials");
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
}

/// A claim about `subject`, signed by `issuer`.
fn jwt(issuer: &nkeys::KeyPair, subject: &nkeys::KeyPair, kind: &str, more: &str) -> String {
    let header = url_base64(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let claims = format!(
        r#"{{"jti":"{kind}","iat":1700000000,"iss":"{}","name":"{kind}","sub":"{}","nats":{{"type":"{kind}","version":2{more}}}}}"#,
        issuer.public_key(),
        subject.public_key()
    );
    let signed = format!("{header}.{}", url_base64(claims.as_bytes()));
    let signature = issuer.sign(signed.as_bytes()).expect("a signature");
    format!("{signed}.{}", url_base64(&signature))
}

fn url_base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let letters = bits.chunks(6).map(|six| {
        let value = (0..6).fold(0, |sum, bit| sum << 1 | usize::from(six.get(bit).copied().unwrap_or(0)));
        char::from(ALPHABET[value])
    });
    letters.collect()
}

/// A certificate authority, with what it has signed, in files.
struct Authority {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let folder = tempfile::tempdir().expect("a folder");
        let certificate = params.self_signed(&key).expect("a certificate");
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).expect("written");
        Authority { folder, issuer: Issuer::new(params, key) }
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn sign(&self, name: &str, usage: ExtendedKeyUsagePurpose) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        std::fs::write(self.file(&format!("{name}.pem")), certificate.pem()).expect("written");
        std::fs::write(self.file(&format!("{name}.key")), key.serialize_pem()).expect("written");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_an_authority_of_ones_own_are_trusted_and_presented() {
    let authority = Authority::new();
    authority.sign("server", ExtendedKeyUsagePurpose::ServerAuth);
    authority.sign("client", ExtendedKeyUsagePurpose::ClientAuth);
    let server = configured(&format!(
        r#"tls {{ cert_file: "{}", key_file: "{}", ca_file: "{}", verify: true }}"#,
        authority.file("server.pem"),
        authority.file("server.key"),
        authority.file("ca.pem"),
    ));
    let access = Access::parse(&server.url().replace("nats://", "tls://")).expect("an address");
    let trusting = access.clone().with_root_certificates(authority.file("ca.pem"));
    let whole =
        trusting.clone().with_client_certificate(authority.file("client.pem"), authority.file("client.key"));
    works(whole.connect().await.expect("it is let in")).await;

    let text = is_refused(access.connect().await, &server);
    assert!(text.contains("certificate"), "{text}");
    is_refused(trusting.connect().await, &server);
    let other = Authority::new();
    let stranger = access.clone().with_root_certificates(other.file("ca.pem"));
    let text = is_refused(stranger.connect().await, &server);
    assert!(text.contains("certificate"), "{text}");
    let error = access.with_root_certificates("/nowhere/ca.pem").connect().await.expect_err("no file");
    assert!(
        matches!(&error, ConnectError::File { .. }) && error.to_string().contains("/nowhere/ca.pem"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_down_is_waited_for() {
    let mut server = servers::Nats::start_own().expect("a NATS server: run tests/run, which installs one");
    server.stop().expect("our own server");
    let connection = connect(&server.url()).await.expect("it goes on trying");
    tokio::task::block_in_place(|| server.restart()).expect("it starts again");
    works(connection).await;
}
