//! Where a topic goes: patterns of topics, and templates of destinations. No I/O.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A pattern or template that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRoute {
    /// The pattern is not made of words, `*` and a last `>`, joined by dots.
    #[error(
        "route pattern: words of A-Z a-z 0-9 _ -, `*` for one word, `>` at the end for one or more, joined by dots"
    )]
    Pattern,
    /// The template is empty or names something else than the topic in braces.
    #[error("route destination: text that may contain {{topic}}, and no other braces")]
    Destination,
}

/// A pattern of topics: words joined by dots, where `*` stands for one word and `>` at the end for one or more.
///
/// ```
/// let orders: outbox::Pattern = "orders.>".parse()?;
/// assert!(orders.fits("orders.eu.placed") && !orders.fits("orders"));
/// # Ok::<(), outbox::InvalidRoute>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    words: Vec<String>,
}

impl Pattern {
    /// Whether a topic is one of these.
    pub fn fits(&self, topic: &str) -> bool {
        let mut words = topic.split('.');
        for part in &self.words {
            let word = words.next();
            match (part.as_str(), word) {
                (_, None) => return false,
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (part, Some(word)) if part == word => {}
                _ => return false,
            }
        }
        words.next().is_none()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words.join("."))
    }
}

impl FromStr for Pattern {
    type Err = InvalidRoute;

    fn from_str(text: &str) -> Result<Self, InvalidRoute> {
        let words: Vec<String> = text.split('.').map(str::to_owned).collect();
        let last = words.len() - 1;
        let valid = |(index, word): (usize, &String)| {
            word == "*" || (word == ">" && index == last) || message::limits::topic(word).is_ok()
        };
        if words.iter().enumerate().all(valid) { Ok(Pattern { words }) } else { Err(InvalidRoute::Pattern) }
    }
}

/// Which destination of the broker each topic goes to. The first pattern that fits counts; a topic that none fits goes
/// to the destination of its own name.
///
/// ```
/// let routes = outbox::Routes::default()
///     .with("orders.>", "shop.{topic}")?
///     .with("*.audit", "audit")?;
/// assert_eq!(&*routes.destination("orders.eu.placed"), "shop.orders.eu.placed");
/// assert_eq!(&*routes.destination("stock.audit"), "audit");
/// assert_eq!(&*routes.destination("payments"), "payments");
/// # Ok::<(), outbox::InvalidRoute>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Routes {
    routes: Vec<(Pattern, String)>,
}

impl Routes {
    /// With one more route. `*` in `pattern` stands for one word, `>` at its end for one or more; `{topic}` in
    /// `destination` for the topic.
    ///
    /// # Errors
    /// See [`InvalidRoute`].
    pub fn with(mut self, pattern: &str, destination: &str) -> Result<Self, InvalidRoute> {
        let pattern = pattern.parse()?;
        if destination.is_empty() || destination.replace("{topic}", "").contains(['{', '}']) {
            return Err(InvalidRoute::Destination);
        }
        self.routes.push((pattern, destination.to_owned()));
        Ok(self)
    }

    /// Where a topic goes.
    pub fn destination(&self, topic: &str) -> Arc<str> {
        let fitting = self.routes.iter().find(|(pattern, _)| pattern.fits(topic));
        fitting.map_or_else(|| topic.into(), |(_, template)| template.replace("{topic}", topic).into())
    }
}

/// `orders.>=shop.{topic}`, joined by a comma and a blank; empty without routes.
impl fmt::Display for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (pattern, destination)) in self.routes.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{pattern}={destination}")?;
        }
        Ok(())
    }
}

/// Remembers the destinations of the topics met: routing is once a topic, not once a message.
#[derive(Debug)]
pub(crate) struct Router {
    routes: Routes,
    known: HashMap<Arc<str>, Arc<str>>,
}

/// Topics remembered; a service that makes up more is routed each time.
const KNOWN: usize = 4096;

impl Router {
    pub(crate) fn new(routes: Routes) -> Self {
        Router { routes, known: HashMap::new() }
    }

    pub(crate) fn route(&mut self, topic: &Arc<str>) -> Arc<str> {
        if let Some(destination) = self.known.get(topic) {
            return Arc::clone(destination);
        }
        let destination = self.routes.destination(topic);
        if self.known.len() < KNOWN {
            self.known.insert(Arc::clone(topic), Arc::clone(&destination));
        }
        destination
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pattern_that_fits_counts() {
        let routes = Routes::default().with("a.*.c", "1").unwrap().with("a.>", "2-{topic}").unwrap();
        let destination = |topic: &str| routes.destination(topic).to_string();
        assert_eq!(
            [destination("a.b.c"), destination("a.b"), destination("a"), destination("a.b.c.d")],
            ["1", "2-a.b", "a", "2-a.b.c.d"]
        );
    }

    #[test]
    fn a_pattern_or_template_that_means_nothing_is_refused() {
        for pattern in ["", "a..b", ">.a", "a b", "a.>.b"] {
            assert_eq!(Routes::default().with(pattern, "x").err(), Some(InvalidRoute::Pattern), "{pattern}");
        }
        for template in ["", "{key}", "a{", "}"] {
            assert_eq!(
                Routes::default().with("a", template).err(),
                Some(InvalidRoute::Destination),
                "{template}"
            );
        }
    }
}
