//! How servers are reached: their addresses, who the client is, whom it trusts. No I/O.

use std::fmt;
use std::path::PathBuf;

use async_nats::{ConnectOptions, ServerAddr};
use percent_encoding::percent_decode_str;

use super::connect::{ConnectError, PATIENCE};

/// The addresses of NATS servers, and what a client needs to be let in.
///
/// ```
/// use brokers::nats::Access;
/// let access = Access::parse("tls://relay:p%40ss@nats-1:4222,tls://nats-2:4222")?.with_root_certificates("/etc/ca.pem");
/// assert!(!format!("{access:?}").contains("p@ss"));
/// # Ok::<(), brokers::nats::ConnectError>(())
/// ```
#[derive(Clone)]
pub struct Access {
    /// Without user, password and token: the client prints its addresses.
    servers: Vec<ServerAddr>,
    credentials: Option<Credentials>,
    roots: Vec<PathBuf>,
    certificate: Option<(PathBuf, PathBuf)>,
}

#[derive(Clone, PartialEq, Eq)]
enum Credentials {
    User(String, String),
    Token(String),
    /// The seed.
    Nkey(String),
    /// The text of a credentials file: a JWT and its seed.
    File(String),
}

impl Access {
    /// From addresses joined by commas: `nats://HOST:PORT` or `tls://HOST:PORT`, with `USER:PASSWORD@` or `TOKEN@` before
    /// the host, percent-encoded. One set of credentials serves all addresses.
    ///
    /// # Errors
    /// An address is not valid, or two addresses have different credentials.
    pub fn parse(servers: &str) -> Result<Self, ConnectError> {
        let mut access =
            Access { servers: Vec::new(), credentials: None, roots: Vec::new(), certificate: None };
        for address in servers.split(',') {
            let address: ServerAddr = address.trim().parse().map_err(|_| ConnectError::Address)?;
            let found = credentials(&address)?;
            if found.is_some() && access.credentials.is_some() && found != access.credentials {
                return Err(ConnectError::TwoCredentials);
            }
            access.credentials = found.or(access.credentials);
            access.servers.push(bare(address)?);
        }
        Ok(access)
    }

    /// As this user, instead of what the addresses say.
    pub fn with_user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.credentials = Some(Credentials::User(user.into(), password.into()));
        self
    }

    /// With this token, instead of what the addresses say.
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.credentials = Some(Credentials::Token(token.into()));
        self
    }

    /// With the NKey of this seed (`SU…`), instead of what the addresses say.
    pub fn with_nkey(mut self, seed: impl Into<String>) -> Self {
        self.credentials = Some(Credentials::Nkey(seed.into().trim().to_owned()));
        self
    }

    /// With the text of a credentials file (`.creds`), instead of what the addresses say.
    pub fn with_credentials(mut self, text: impl Into<String>) -> Self {
        self.credentials = Some(Credentials::File(text.into()));
        self
    }

    /// Trusts the certificate authorities in this PEM file, instead of those of the system.
    pub fn with_root_certificates(mut self, file: impl Into<PathBuf>) -> Self {
        self.roots.push(file.into());
        self
    }

    /// Presents the certificate of one PEM file, whose key is in another.
    pub fn with_client_certificate(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.certificate = Some((certificate.into(), key.into()));
        self
    }

    pub(super) fn servers(&self) -> Vec<ServerAddr> {
        self.servers.clone()
    }

    /// The addresses in one order, whichever they were given in: processes compare them.
    pub(super) fn described(&self) -> String {
        let mut servers: Vec<String> = self.servers.iter().map(host_and_port).collect();
        servers.sort();
        servers.dedup();
        format!("nats://{}", servers.join(","))
    }

    /// The files that are read while connecting.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let pair = self.certificate.iter().flat_map(|(certificate, key)| [certificate, key]);
        self.roots.iter().chain(pair)
    }

    /// The client's options.
    pub(super) fn options(&self) -> Result<ConnectOptions, ConnectError> {
        let options = ConnectOptions::new().connection_timeout(PATIENCE).request_timeout(Some(PATIENCE));
        let options = match self.credentials.clone() {
            None => options,
            Some(Credentials::User(user, password)) => options.user_and_password(user, password),
            Some(Credentials::Token(token)) => options.token(token),
            Some(Credentials::Nkey(seed)) => options.nkey(seed),
            // The client's error may repeat a part of the text.
            Some(Credentials::File(text)) => {
                options.credentials(&text).map_err(|_| ConnectError::Credentials)?
            }
        };
        let options = self.roots.iter().cloned().fold(options, ConnectOptions::add_root_certificates);
        Ok(match self.certificate.clone() {
            None => options,
            Some((certificate, key)) => options.add_client_certificate(certificate, key),
        })
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, server) in self.servers.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{}", host_and_port(server))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Access({self})")
    }
}

/// A server as a person knows it.
pub(super) fn host_and_port(server: &ServerAddr) -> String {
    let host = server.host();
    if host.contains(':') {
        format!("[{host}]:{}", server.port())
    } else {
        format!("{host}:{}", server.port())
    }
}

/// What stands before the host. A name alone is a token.
fn credentials(address: &ServerAddr) -> Result<Option<Credentials>, ConnectError> {
    let decoded = |text: &str| {
        let text = percent_decode_str(text).decode_utf8().map_err(|_| ConnectError::Address)?;
        Ok::<String, ConnectError>(text.into_owned())
    };
    let name = decoded(address.username().unwrap_or_default())?;
    match address.password() {
        Some(password) => Ok(Some(Credentials::User(name, decoded(password)?))),
        None => Ok((!name.is_empty()).then_some(Credentials::Token(name))),
    }
}

/// The address without what stands before the host.
fn bare(address: ServerAddr) -> Result<ServerAddr, ConnectError> {
    let mut url = address.into_inner();
    // Refused only by a URL without a host, which is no address.
    url.set_password(None).and_then(|()| url.set_username("")).map_err(|()| ConnectError::Address)?;
    ServerAddr::from_url(url).map_err(|_| ConnectError::Address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_an_address_are_decoded_and_taken_out_of_it() {
        let found = |servers: &str| Access::parse(servers).unwrap().credentials;
        let user = |name: &str, password: &str| Some(Credentials::User(name.into(), password.into()));
        assert!(found("nats://u:p@h") == user("u", "p"));
        assert!(found("nats://u%40x:p%2F%3A%C3%A9@h:1") == user("u@x", "p/:é"));
        assert!(found("nats://tok%25en@h") == Some(Credentials::Token("tok%en".into())));
        assert!(found("nats://h,tls://u:p@[::1]:5") == user("u", "p"));
        assert!(found("nats://u:p@h, nats://u:p@i") == user("u", "p"));
        assert!(found("nats://h").is_none());
        let access = Access::parse("nats://m4rker:m4rker@h,tls://m4rker:m4rker@[::1]:5").unwrap();
        assert_eq!(access.to_string(), "h:4222, [::1]:5");
        assert_eq!(access.described(), "nats://[::1]:5,h:4222");
        assert!(!format!("{access:?} {:?}", access.servers).contains("m4rker"));
    }

    #[test]
    fn what_is_no_address_is_refused_without_being_repeated() {
        for servers in ["", "nats://", "nats://m4rker:x@", "http://m4rker@h", "nats://a%ff:m4rker@h"] {
            let error = Access::parse(servers).map(drop).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("m4rker"), "{servers}");
        }
        let error = Access::parse("nats://u:m4rker@h,nats://u:other@i").map(drop).unwrap_err();
        assert!(matches!(error, ConnectError::TwoCredentials));
    }
}
