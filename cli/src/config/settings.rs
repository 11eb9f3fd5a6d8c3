//! The settings of `outbox relay`: one list, from which the file's keys, the environment's variables, the flags and the
//! suggestions all come.

/// What a setting's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Duration,
    Count,
    Switch,
}

/// One setting under its three names.
#[derive(Debug)]
pub(super) struct Setting {
    /// In the file; a dot stands for a table.
    pub(super) key: &'static str,
    /// In the environment.
    pub(super) variable: &'static str,
    /// On the command line.
    pub(super) flag: &'static str,
    pub(super) kind: Kind,
}

const fn setting(key: &'static str, variable: &'static str, flag: &'static str, kind: Kind) -> Setting {
    Setting { key, variable, flag, kind }
}

/// Every setting, except the routes, which are a list. Those of the relay itself have the names of `outbox::Settings`.
pub(super) const SETTINGS: [Setting; 33] = [
    setting("database", crate::database::VARIABLE, "--database", Kind::Text),
    setting("databases", "OUTBOX_DATABASES", "--databases", Kind::Text),
    setting("connections", "OUTBOX_CONNECTIONS", "--connections", Kind::Count),
    setting("relay", "OUTBOX_RELAY", "--relay", Kind::Text),
    setting("broker", "OUTBOX_BROKER", "--broker", Kind::Text),
    setting("start", "OUTBOX_START", "--start", Kind::Text),
    setting("shards", "OUTBOX_SHARDS", "--shards", Kind::Count),
    setting("batch", "OUTBOX_BATCH", "--batch", Kind::Count),
    setting("max_on_wire", "OUTBOX_MAX_ON_WIRE", "--max-on-wire", Kind::Count),
    setting("max_unrecorded", "OUTBOX_MAX_UNRECORDED", "--max-unrecorded", Kind::Count),
    setting("max_bytes", "OUTBOX_MAX_BYTES", "--max-bytes", Kind::Count),
    setting("record_interval", "OUTBOX_RECORD_INTERVAL", "--record-interval", Kind::Duration),
    setting("poll_ceiling", "OUTBOX_POLL_CEILING", "--poll-ceiling", Kind::Duration),
    setting("doorbell", "OUTBOX_DOORBELL", "--doorbell", Kind::Switch),
    setting("doorbell_ceiling", "OUTBOX_DOORBELL_CEILING", "--doorbell-ceiling", Kind::Duration),
    setting("publish_timeout", "OUTBOX_PUBLISH_TIMEOUT", "--publish-timeout", Kind::Duration),
    setting("lease", "OUTBOX_LEASE", "--lease", Kind::Duration),
    setting("retention", "OUTBOX_RETENTION", "--retention", Kind::Duration),
    setting("drain", "OUTBOX_DRAIN", "--drain", Kind::Duration),
    setting("retry.max_attempts", "OUTBOX_RETRY_MAX_ATTEMPTS", "--retry-max-attempts", Kind::Count),
    setting("retry.first", "OUTBOX_RETRY_FIRST", "--retry-first", Kind::Duration),
    setting("retry.ceiling", "OUTBOX_RETRY_CEILING", "--retry-ceiling", Kind::Duration),
    setting("unavailable.first", "OUTBOX_UNAVAILABLE_FIRST", "--unavailable-first", Kind::Duration),
    setting("unavailable.ceiling", "OUTBOX_UNAVAILABLE_CEILING", "--unavailable-ceiling", Kind::Duration),
    setting("nats.stream", "OUTBOX_NATS_STREAM", "--nats-stream", Kind::Text),
    setting("nats.subjects", "OUTBOX_NATS_SUBJECTS", "--nats-subjects", Kind::Text),
    setting("nats.credentials", "OUTBOX_NATS_CREDENTIALS", "--nats-credentials", Kind::Text),
    setting("nats.nkey", "OUTBOX_NATS_NKEY", "--nats-nkey", Kind::Text),
    setting("nats.ca", "OUTBOX_NATS_CA", "--nats-ca", Kind::Text),
    setting("nats.certificate", "OUTBOX_NATS_CERTIFICATE", "--nats-certificate", Kind::Text),
    setting("nats.key", "OUTBOX_NATS_KEY", "--nats-key", Kind::Text),
    setting("log", "OUTBOX_LOG", "--log", Kind::Text),
    setting("log_format", "OUTBOX_LOG_FORMAT", "--log-format", Kind::Text),
];

/// The setting of that key.
pub(super) fn by_key(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_settings_three_names_are_one_name() {
        for Setting { key, variable, flag, .. } in &SETTINGS[1..] {
            let word = key.replace('.', "_");
            assert_eq!(*variable, format!("OUTBOX_{}", word.to_uppercase()));
            assert_eq!(*flag, format!("--{}", word.replace('_', "-")));
        }
    }
}
