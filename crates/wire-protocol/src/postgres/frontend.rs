//! What a client sends, as views that borrow from the body.
//!
//! Texts are bytes without NUL: the client's encoding may be any.

use super::reader::Formats;
use super::{Reader, WireError, tag};

/// A client's message after its authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrontendMessage<'a> {
    /// `Q`
    Query {
        /// SQL.
        sql: &'a [u8],
    },
    /// `P`
    Parse(Parse<'a>),
    /// `B`
    Bind(Bind<'a>),
    /// `D`
    Describe(Target<'a>),
    /// `E`
    Execute(Execute<'a>),
    /// `C`
    Close(Target<'a>),
    /// `F`
    FunctionCall(FunctionCall<'a>),
    /// `d`
    CopyData(&'a [u8]),
    /// `c`
    CopyDone,
    /// `f`
    CopyFail {
        /// Why.
        message: &'a [u8],
    },
    /// `p`: a password, a SASL or a GSS answer; see [`password`], [`SaslInitialResponse`].
    Password(Secret<'a>),
    /// `H`
    Flush,
    /// `S`
    Sync,
    /// `X`
    Terminate,
}

impl<'a> FrontendMessage<'a> {
    /// Decodes a body.
    ///
    /// # Errors
    /// [`WireError`] for an unknown type and for content that is not exactly what that type has.
    pub fn decode(tag: u8, body: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let message = match tag {
            tag::QUERY => Self::Query { sql: reader.cstr()? },
            tag::PARSE => return Parse::decode(body).map(Self::Parse),
            tag::BIND => return Bind::decode(body).map(Self::Bind),
            tag::DESCRIBE => Self::Describe(Target::read(&mut reader)?),
            tag::EXECUTE => Self::Execute(Execute {
                portal: reader.cstr()?,
                rows_max: reader.i32("the row limit")?,
            }),
            tag::CLOSE => Self::Close(Target::read(&mut reader)?),
            tag::FUNCTION_CALL => return FunctionCall::decode(body).map(Self::FunctionCall),
            tag::COPY_DATA => return Ok(Self::CopyData(body)),
            tag::COPY_DONE => Self::CopyDone,
            tag::COPY_FAIL => Self::CopyFail {
                message: reader.cstr()?,
            },
            tag::PASSWORD => return Ok(Self::Password(Secret(body))),
            tag::FLUSH => Self::Flush,
            tag::SYNC => Self::Sync,
            tag::TERMINATE => Self::Terminate,
            tag => return Err(WireError::UnknownTag { tag }),
        };
        reader.finish()?;
        Ok(message)
    }
}

/// Bytes that `Debug` does not show.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret<'a>(pub &'a [u8]);

impl std::fmt::Debug for Secret<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret")
    }
}

/// Statement or portal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target<'a> {
    /// A prepared statement's name (empty: the unnamed one).
    Statement(&'a [u8]),
    /// A portal's name.
    Portal(&'a [u8]),
}

impl<'a> Target<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        match reader.u8("the kind of target")? {
            b'S' => reader.cstr().map(Self::Statement),
            b'P' => reader.cstr().map(Self::Portal),
            other => Err(WireError::BadValue {
                what: "the kind of a Describe or Close",
                value: other.into(),
            }),
        }
    }
}

/// `P`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parse<'a> {
    /// Statement name.
    pub name: &'a [u8],
    /// SQL.
    pub sql: &'a [u8],
    types: &'a [u8],
}

impl<'a> Parse<'a> {
    /// Decodes a body.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let name = reader.cstr()?;
        let sql = reader.cstr()?;
        let count = reader.u16("the count of parameter types")?;
        let types = reader.take(usize::from(count) * 4, "parameter types")?;
        reader.finish()?;
        Ok(Self { name, sql, types })
    }

    /// Types the client gave for the first parameters; 0 leaves one to the server.
    pub fn parameter_types(&self) -> impl Iterator<Item = u32> + 'a {
        let (types, _) = self.types.as_chunks::<4>();
        types.iter().map(|oid| u32::from_be_bytes(*oid))
    }
}

/// `B`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bind<'a> {
    /// Portal name.
    pub portal: &'a [u8],
    /// Statement name.
    pub statement: &'a [u8],
    /// Formats of the parameters.
    pub parameter_formats: Formats<'a>,
    /// How many parameters.
    pub parameter_count: u16,
    /// Formats of the result's columns.
    pub result_formats: Formats<'a>,
    parameters: &'a [u8],
    /// All that follows the two names.
    pub(super) after_names: &'a [u8],
}

impl<'a> Bind<'a> {
    /// Decodes a body.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let names = BindNames::read(&mut reader)?;
        let after_names = reader.rest();
        let parameter_formats = reader.formats("parameter formats")?;
        let parameter_count = reader.u16("the count of parameters")?;
        let parameters = reader.rest();
        for _ in 0..parameter_count {
            reader.value("a parameter")?;
        }
        let parameters = parameters
            .get(..parameters.len() - reader.rest().len())
            .unwrap_or_default();
        let result_formats = reader.formats("result formats")?;
        reader.finish()?;
        Ok(Self {
            portal: names.portal,
            statement: names.statement,
            parameter_formats,
            parameter_count,
            result_formats,
            parameters,
            after_names,
        })
    }

    /// The values; `None` is NULL.
    pub fn parameters(&self) -> impl Iterator<Item = Option<&'a [u8]>> + 'a {
        let mut reader = Reader::new(self.parameters);
        // Walked once by `decode`, so the walk ends exactly at the end.
        std::iter::from_fn(move || {
            if reader.rest().is_empty() {
                None
            } else {
                reader.value("a parameter").ok()
            }
        })
    }
}

/// The names at the front of a Bind: all that is needed of one whose values stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BindNames<'a> {
    /// Portal name.
    pub portal: &'a [u8],
    /// Statement name.
    pub statement: &'a [u8],
}

impl<'a> BindNames<'a> {
    /// Reads the names from the first bytes of a body (what follows the header in [`super::Frame::Head`]'s prefix).
    ///
    /// # Errors
    /// [`WireError::Unterminated`] where they do not end within it: refuse that Bind.
    pub fn decode_front(front: &'a [u8]) -> Result<Self, WireError> {
        Self::read(&mut Reader::new(front))
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        Ok(Self {
            portal: reader.cstr()?,
            statement: reader.cstr()?,
        })
    }
}

/// `E`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Execute<'a> {
    /// Portal name.
    pub portal: &'a [u8],
    /// Row limit; 0 or less = none.
    pub rows_max: i32,
}

/// `F`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FunctionCall<'a> {
    /// `pg_proc.oid`
    pub function: u32,
    /// Formats of the arguments.
    pub argument_formats: Formats<'a>,
    /// How many arguments.
    pub argument_count: u16,
    /// Format of the result.
    pub result_format: i16,
}

impl<'a> FunctionCall<'a> {
    /// Decodes a body.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let function = reader.u32("the function")?;
        let argument_formats = reader.formats("argument formats")?;
        let argument_count = reader.u16("the count of arguments")?;
        for _ in 0..argument_count {
            reader.value("an argument")?;
        }
        let result_format = reader.i16("the result format")?;
        reader.finish()?;
        Ok(Self {
            function,
            argument_formats,
            argument_count,
            result_format,
        })
    }

    /// The function of a body whose arguments stream.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn function_of_front(front: &[u8]) -> Result<u32, WireError> {
        Reader::new(front).u32("the function")
    }
}

/// The text of a password answer.
///
/// # Errors
/// [`WireError`].
pub fn password(body: &[u8]) -> Result<&[u8], WireError> {
    let mut reader = Reader::new(body);
    let text = reader.cstr()?;
    reader.finish()?;
    Ok(text)
}

/// First answer of a client to a SASL request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SaslInitialResponse<'a> {
    /// Mechanism chosen.
    pub mechanism: &'a [u8],
    /// First message of the mechanism, if it came along.
    pub data: Option<&'a [u8]>,
}

impl<'a> SaslInitialResponse<'a> {
    /// Decodes a body.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let mechanism = reader.cstr()?;
        let data = reader.value("the first SASL message")?;
        reader.finish()?;
        Ok(Self { mechanism, data })
    }
}
