//! Parses raw heads for display.

/// A parsed head. Non-ASCII bytes are shown as Latin-1, so that nothing is lost.
#[derive(Debug, Default, Clone)]
pub(crate) struct Head {
    /// The three words of the first line.
    pub(crate) first: [String; 3],
    pub(crate) headers: Vec<(String, String)>,
}

impl Head {
    pub(crate) fn parse(raw: &[u8]) -> Self {
        let text: String = raw.iter().copied().map(char::from).collect();
        let mut lines = text.split("\r\n").flat_map(|line| line.split('\n'));
        let mut words = lines.next().unwrap_or_default().splitn(3, ' ').map(str::to_owned);
        let first = [(); 3].map(|()| words.next().unwrap_or_default());
        let headers = lines
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        Self { first, headers }
    }

    /// The first value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The media type of the body in lower case, without parameters.
    pub(crate) fn media_type(&self) -> String {
        let value = self.header("content-type").unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }

    pub(crate) fn method(&self) -> &str {
        &self.first[0]
    }

    pub(crate) fn path(&self) -> &str {
        &self.first[1]
    }

    pub(crate) fn reason(&self) -> &str {
        &self.first[2]
    }
}
