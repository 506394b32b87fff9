//! What a server sends, as views that borrow from the body.

use super::reader::Formats;
use super::{Reader, WireError, tag};

/// A server's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendMessage<'a> {
    /// `R`
    Authentication(Authentication<'a>),
    /// `K`
    BackendKeyData(BackendKeyData<'a>),
    /// `S`
    ParameterStatus {
        /// Setting.
        name: &'a [u8],
        /// Its value from now on.
        value: &'a [u8],
    },
    /// `Z`
    ReadyForQuery(TransactionStatus),
    /// `T`
    RowDescription(RowDescription<'a>),
    /// `t`
    ParameterDescription(ParameterDescription<'a>),
    /// `D`
    DataRow(DataRow<'a>),
    /// `C`
    CommandComplete(CommandTag<'a>),
    /// `I`
    EmptyQueryResponse,
    /// `n`
    NoData,
    /// `1`
    ParseComplete,
    /// `2`
    BindComplete,
    /// `3`
    CloseComplete,
    /// `s`
    PortalSuspended,
    /// `G`
    CopyInResponse(CopyResponse<'a>),
    /// `H`
    CopyOutResponse(CopyResponse<'a>),
    /// `W`
    CopyBothResponse(CopyResponse<'a>),
    /// `d`
    CopyData(&'a [u8]),
    /// `c`
    CopyDone,
    /// `E`
    ErrorResponse(Fields<'a>),
    /// `N`
    NoticeResponse(Fields<'a>),
    /// `A`
    NotificationResponse {
        /// Of whom.
        process_id: i32,
        /// Channel.
        channel: &'a [u8],
        /// Payload.
        payload: &'a [u8],
    },
    /// `V`
    FunctionCallResponse {
        /// `None` is NULL.
        value: Option<&'a [u8]>,
    },
    /// `v`
    NegotiateProtocolVersion(NegotiateProtocolVersion<'a>),
}

impl<'a> BackendMessage<'a> {
    /// Decodes a body.
    ///
    /// # Errors
    /// [`WireError`] for an unknown type and for content that is not exactly what that type has.
    pub fn decode(tag: u8, body: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let message = match tag {
            tag::AUTHENTICATION => return Authentication::decode(body).map(Self::Authentication),
            tag::BACKEND_KEY_DATA => return BackendKeyData::decode(body).map(Self::BackendKeyData),
            tag::PARAMETER_STATUS => Self::ParameterStatus {
                name: reader.cstr()?,
                value: reader.cstr()?,
            },
            tag::READY_FOR_QUERY => Self::ReadyForQuery(TransactionStatus::read(&mut reader)?),
            tag::ROW_DESCRIPTION => return RowDescription::decode(body).map(Self::RowDescription),
            tag::PARAMETER_DESCRIPTION => {
                return ParameterDescription::decode(body).map(Self::ParameterDescription);
            }
            tag::DATA_ROW => return DataRow::decode(body).map(Self::DataRow),
            tag::COMMAND_COMPLETE => Self::CommandComplete(CommandTag { text: reader.cstr()? }),
            tag::EMPTY_QUERY_RESPONSE => Self::EmptyQueryResponse,
            tag::NO_DATA => Self::NoData,
            tag::PARSE_COMPLETE => Self::ParseComplete,
            tag::BIND_COMPLETE => Self::BindComplete,
            tag::CLOSE_COMPLETE => Self::CloseComplete,
            tag::PORTAL_SUSPENDED => Self::PortalSuspended,
            tag::COPY_IN_RESPONSE => Self::CopyInResponse(CopyResponse::read(&mut reader)?),
            tag::COPY_OUT_RESPONSE => Self::CopyOutResponse(CopyResponse::read(&mut reader)?),
            tag::COPY_BOTH_RESPONSE => Self::CopyBothResponse(CopyResponse::read(&mut reader)?),
            tag::COPY_DATA => return Ok(Self::CopyData(body)),
            tag::COPY_DONE => Self::CopyDone,
            tag::ERROR_RESPONSE => return Fields::decode(body).map(Self::ErrorResponse),
            tag::NOTICE_RESPONSE => return Fields::decode(body).map(Self::NoticeResponse),
            tag::NOTIFICATION_RESPONSE => Self::NotificationResponse {
                process_id: reader.i32("the process id")?,
                channel: reader.cstr()?,
                payload: reader.cstr()?,
            },
            tag::FUNCTION_CALL_RESPONSE => Self::FunctionCallResponse {
                value: reader.value("the result")?,
            },
            tag::NEGOTIATE_PROTOCOL_VERSION => {
                return NegotiateProtocolVersion::decode(body).map(Self::NegotiateProtocolVersion);
            }
            tag => return Err(WireError::UnknownTag { tag }),
        };
        reader.finish()?;
        Ok(message)
    }
}

/// `R`, by its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authentication<'a> {
    /// 0
    Ok,
    /// 2
    KerberosV5,
    /// 3
    CleartextPassword,
    /// 5
    Md5Password {
        /// Salt.
        salt: [u8; 4],
    },
    /// 7
    Gss,
    /// 8
    GssContinue(&'a [u8]),
    /// 9
    Sspi,
    /// 10
    Sasl(Mechanisms<'a>),
    /// 11
    SaslContinue(&'a [u8]),
    /// 12
    SaslFinal(&'a [u8]),
}

impl<'a> Authentication<'a> {
    /// Decodes a body.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let message = match reader.i32("the authentication code")? {
            0 => Self::Ok,
            2 => Self::KerberosV5,
            3 => Self::CleartextPassword,
            5 => Self::Md5Password {
                salt: reader
                    .take(4, "the salt")?
                    .try_into()
                    .map_err(|_| WireError::Truncated { what: "the salt" })?,
            },
            7 => Self::Gss,
            8 => return Ok(Self::GssContinue(reader.rest())),
            9 => Self::Sspi,
            10 => {
                let names = reader.rest();
                loop {
                    if reader.cstr()?.is_empty() {
                        break;
                    }
                }
                Self::Sasl(Mechanisms { names })
            }
            11 => return Ok(Self::SaslContinue(reader.rest())),
            12 => return Ok(Self::SaslFinal(reader.rest())),
            value => {
                return Err(WireError::BadValue {
                    what: "the authentication method",
                    value: value.into(),
                });
            }
        };
        reader.finish()?;
        Ok(message)
    }
}

/// SASL mechanisms a server offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mechanisms<'a> {
    names: &'a [u8],
}

impl<'a> Mechanisms<'a> {
    /// The names in the server's order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.names
            .split(|byte| *byte == 0)
            .take_while(|name| !name.is_empty())
    }
}

/// `K`
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BackendKeyData<'a> {
    /// Process id.
    pub process_id: u32,
    /// Key, 4 to 256 bytes.
    pub key: &'a [u8],
}

impl<'a> BackendKeyData<'a> {
    /// Decodes a body.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let process_id = reader.u32("the process id")?;
        let key = reader.rest();
        if (4..=256).contains(&key.len()) {
            Ok(Self { process_id, key })
        } else {
            Err(WireError::BadValue {
                what: "the length of a cancel key",
                value: i64::try_from(key.len()).unwrap_or(i64::MAX),
            })
        }
    }
}

impl std::fmt::Debug for BackendKeyData<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("BackendKeyData")
            .field("process_id", &self.process_id)
            .finish_non_exhaustive()
    }
}

/// What ReadyForQuery says of the transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransactionStatus {
    /// `I`
    Idle,
    /// `T`
    InTransaction,
    /// `E`
    Failed,
}

impl TransactionStatus {
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        match reader.u8("the transaction status")? {
            b'I' => Ok(Self::Idle),
            b'T' => Ok(Self::InTransaction),
            b'E' => Ok(Self::Failed),
            other => Err(WireError::BadValue {
                what: "the transaction status",
                value: other.into(),
            }),
        }
    }

    /// The byte on the wire.
    pub fn byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::InTransaction => b'T',
            Self::Failed => b'E',
        }
    }
}

/// `T`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowDescription<'a> {
    count: u16,
    fields: &'a [u8],
}

/// One column of a [`RowDescription`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Field<'a> {
    /// Name.
    pub name: &'a [u8],
    /// Relation it comes from as it is; 0 = none.
    pub table_oid: u32,
    /// Column number there; 0 = none.
    pub column: i16,
    /// Type.
    pub type_oid: u32,
    /// `pg_type.typlen`
    pub type_size: i16,
    /// Type modifier.
    pub type_modifier: i32,
    /// 0 text, 1 binary; always 0 where a statement is described.
    pub format: i16,
}

impl<'a> RowDescription<'a> {
    /// Decodes a body.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let count = reader.u16("the count of columns")?;
        let fields = reader.rest();
        for _ in 0..count {
            Field::read(&mut reader)?;
        }
        reader.finish()?;
        Ok(Self { count, fields })
    }

    /// How many columns.
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }
    /// No column (`SELECT FROM t`).
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
    /// The columns in order.
    pub fn fields(&self) -> impl Iterator<Item = Field<'a>> + 'a {
        let mut reader = Reader::new(self.fields);
        // Walked once by `decode`.
        (0..self.count).map_while(move |_| Field::read(&mut reader).ok())
    }
}

impl<'a> Field<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        Ok(Self {
            name: reader.cstr()?,
            table_oid: reader.u32("the table of a column")?,
            column: reader.i16("the number of a column")?,
            type_oid: reader.u32("the type of a column")?,
            type_size: reader.i16("the size of a column")?,
            type_modifier: reader.i32("the modifier of a column")?,
            format: reader.i16("the format of a column")?,
        })
    }
}

/// `t`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterDescription<'a> {
    types: &'a [u8],
}

impl<'a> ParameterDescription<'a> {
    /// Decodes a body.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let count = reader.u16("the count of parameters")?;
        let types = reader.take(usize::from(count) * 4, "parameter types")?;
        reader.finish()?;
        Ok(Self { types })
    }

    /// Types in order.
    pub fn types(&self) -> impl Iterator<Item = u32> + 'a {
        let (types, _) = self.types.as_chunks::<4>();
        types.iter().map(|oid| u32::from_be_bytes(*oid))
    }
}

/// `D`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataRow<'a> {
    count: u16,
    cells: &'a [u8],
}

impl<'a> DataRow<'a> {
    /// Decodes a body: every cell is walked, so that the iterator cannot end early.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let count = reader.u16("the count of cells")?;
        let cells = reader.rest();
        for _ in 0..count {
            reader.value("a cell")?;
        }
        reader.finish()?;
        Ok(Self { count, cells })
    }

    /// How many cells.
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }
    /// No cell.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
    /// The cells in order; `None` is NULL.
    pub fn cells(&self) -> impl Iterator<Item = Option<&'a [u8]>> + 'a {
        let mut reader = Reader::new(self.cells);
        (0..self.count).map_while(move |_| reader.value("a cell").ok())
    }
    /// All cells with their lengths, as on the wire.
    pub fn encoded_cells(&self) -> &'a [u8] {
        self.cells
    }
}

/// `C`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandTag<'a> {
    /// `SELECT 5`, `INSERT 0 1`, `BEGIN` …
    pub text: &'a [u8],
}

impl<'a> CommandTag<'a> {
    /// The count at the end, where the command has one.
    pub fn rows(&self) -> Option<u64> {
        let (_, last) = self.split();
        last
    }

    /// The command without its numbers: `INSERT`, `CREATE TABLE`.
    pub fn command(&self) -> &'a [u8] {
        let (command, _) = self.split();
        // INSERT has an OID (always 0 today) before its count.
        command.strip_suffix(b" 0").unwrap_or(command)
    }

    fn split(&self) -> (&'a [u8], Option<u64>) {
        let Some(space) = memchr::memrchr(b' ', self.text) else {
            return (self.text, None);
        };
        let (command, number) = self.text.split_at_checked(space).unwrap_or((self.text, b""));
        let number = number
            .strip_prefix(b" ")
            .filter(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| digits.parse().ok());
        match number {
            Some(number) => (command, Some(number)),
            None => (self.text, None),
        }
    }
}

/// `G`, `H`, `W`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyResponse<'a> {
    /// 0 text, 1 binary.
    pub format: u8,
    /// Format of each column.
    pub column_formats: Formats<'a>,
}

impl<'a> CopyResponse<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        Ok(Self {
            format: reader.u8("the COPY format")?,
            column_formats: reader.formats("the COPY formats")?,
        })
    }
}

/// `E` and `N`: fields by their letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fields<'a> {
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Decodes a body.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        while reader.u8("the end of the fields")? != 0 {
            reader.cstr()?;
        }
        reader.finish()?;
        Ok(Self { bytes: body })
    }

    /// Letter and text of each field, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &'a [u8])> + 'a {
        let mut reader = Reader::new(self.bytes);
        std::iter::from_fn(move || match reader.u8("a field") {
            Ok(0) | Err(_) => None,
            Ok(code) => reader.cstr().ok().map(|text| (code, text)),
        })
    }

    /// The field of that letter.
    pub fn get(&self, code: u8) -> Option<&'a [u8]> {
        self.iter()
            .find(|(known, _)| *known == code)
            .map(|(_, text)| text)
    }

    /// The SQLSTATE (`C`).
    pub fn sqlstate(&self) -> Option<&'a [u8]> {
        self.get(b'C')
    }

    /// The severity that is never translated (`V`, since 9.6), else `S`.
    pub fn severity(&self) -> Option<&'a [u8]> {
        self.get(b'V').or_else(|| self.get(b'S'))
    }

    /// FATAL or PANIC: the connection ends.
    pub fn ends_session(&self) -> bool {
        matches!(self.severity(), Some(b"FATAL" | b"PANIC"))
    }
}

/// `v`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NegotiateProtocolVersion<'a> {
    /// The newest version the server speaks: servers send the whole number, the documents say only the minor one.
    pub newest: u32,
    /// How many options were not understood.
    pub unknown_count: u32,
    names: &'a [u8],
}

impl<'a> NegotiateProtocolVersion<'a> {
    /// Decodes a body.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let newest = reader.u32("the protocol version")?;
        let unknown_count = reader.u32("the count of options")?;
        let names = reader.rest();
        // Each name takes at least its NUL, so the count cannot exceed what is there.
        for _ in 0..unknown_count {
            reader.cstr()?;
        }
        reader.finish()?;
        Ok(Self {
            newest,
            unknown_count,
            names,
        })
    }

    /// The minor version.
    pub fn minor(&self) -> u32 {
        self.newest & 0xFFFF
    }

    /// Options that were not understood.
    pub fn unknown(&self) -> impl Iterator<Item = &'a [u8]> + 'a {
        let mut reader = Reader::new(self.names);
        std::iter::from_fn(move || reader.cstr().ok())
    }
}
