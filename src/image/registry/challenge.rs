//! `WWW-Authenticate`: how a registry wants to be told who asks. RFC 9110, section 11.6.1.

/// One way to do so, with its parameters; scheme and keys in lower case.
#[derive(Debug, PartialEq, Eq)]
pub struct Challenge {
    pub scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    pub fn get(&self, key: &str) -> Option<&str> {
        self.parameters.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Those of one header; what breaks the grammar ends them.
    pub fn parse(header: &str) -> Vec<Self> {
        let mut challenges: Vec<Self> = Vec::new();
        let mut rest = header;
        loop {
            rest = rest.trim_start_matches([',', ' ', '\t']);
            let Some((word, after)) = token(rest) else { return challenges };
            let value_follows = after.trim_start().strip_prefix('=');
            match (value_follows.map(str::trim_start).and_then(value), challenges.last_mut()) {
                (Some((value, after)), Some(challenge)) => {
                    challenge.parameters.push((word.to_ascii_lowercase(), value));
                    rest = after;
                }
                (None, _) if value_follows.is_none() => {
                    challenges.push(Self { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                    rest = after;
                }
                _ => return challenges,
            }
        }
    }
}

fn token(text: &str) -> Option<(&str, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_alphanumeric() && !"!#$%&'*+-.^_`|~".contains(c))
        .unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// A token, or a string in quotes.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        return token(text).map(|(value, rest)| (value.to_owned(), rest));
    };
    let (mut value, mut chars) = (String::new(), quoted.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(scheme: &str, parameters: &[(&str, &str)]) -> Challenge {
        let parameters = parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Challenge { scheme: scheme.to_owned(), parameters }
    }

    #[test]
    fn challenges_are_read_with_their_parameters() {
        for (header, expected) in [
            ("", vec![]),
            ("Basic", vec![challenge("basic", &[])]),
            ("Basic realm=\"a \\\"b\\\", c\"", vec![challenge("basic", &[("realm", "a \"b\", c")])]),
            (
                "Bearer realm=\"https://a/t\",service=x , Scope=\"repository:a:pull,push\"",
                vec![challenge(
                    "bearer",
                    &[("realm", "https://a/t"), ("service", "x"), ("scope", "repository:a:pull,push")],
                )],
            ),
            (
                "Negotiate, Basic realm=x, Bearer realm=\"y\"",
                vec![
                    challenge("negotiate", &[]),
                    challenge("basic", &[("realm", "x")]),
                    challenge("bearer", &[("realm", "y")]),
                ],
            ),
            ("Bearer realm=\"open", vec![challenge("bearer", &[])]),
            ("=x", vec![]),
            ("realm=\"x\"", vec![]),
        ] {
            assert_eq!(Challenge::parse(header), expected, "{header}");
        }
    }
}
