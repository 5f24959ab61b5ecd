//! The fields of a line of the text log, made harmless.

use std::fmt;

use lb_core::printable::Printable;
use tracing_subscriber::{
    field::RecordFields,
    fmt::{
        FormatFields,
        format::{DefaultFields, Writer},
    },
};

/// The fields of a line of the text log, its message among them.
#[derive(Debug, Default)]
pub(super) struct Fields(DefaultFields);

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(
        &self,
        mut writer: Writer<'writer>,
        fields: R,
    ) -> fmt::Result {
        let mut text = String::new();
        self.0.format_fields(Writer::new(&mut text), fields)?;
        write!(writer, "{}", Printable(text))
    }
}
