// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
)

// Sentinels to decide on with [errors.Is]. Those of this group classify an [*APIError] by its
// status.
var (
	// ErrInvalidRequest: the request is not acceptable. Either the server said so (400, and every
	// other 4xx that has no sentinel of its own), or this package refused it before anything was
	// sealed. It is also the error of arguments that make no sense: a passphrase that is too short,
	// a text that is no fingerprint.
	ErrInvalidRequest = fault.ErrInvalidRequest
	// ErrAuthentication: the API key is missing or wrong (401).
	ErrAuthentication = fault.ErrAuthentication
	// ErrPermission: the key is good but not for this model or tier (403).
	ErrPermission = fault.ErrPermission
	// ErrNotFound: no such endpoint; on NOMYO servers, sealed inference is not enabled (404).
	ErrNotFound = fault.ErrNotFound
	// ErrRateLimited: too many requests (429).
	ErrRateLimited = fault.ErrRateLimited
	// ErrServer: the server failed (500 and every 5xx except 503), or answered a status that the
	// protocol does not have.
	ErrServer = fault.ErrServer
	// ErrUnavailable: the server is down or has this key in a cool-down, 30 minutes on NOMYO
	// servers (503).
	ErrUnavailable = fault.ErrUnavailable
)

// Sentinels for all else that goes wrong, for [errors.Is] as well.
var (
	// ErrConnection: no complete answer arrived: the connection failed, was cut, or the attempt's
	// time ran out. With ProtocolOHTTP also: the answer was not sealed (OuterError).
	ErrConnection = fault.ErrConnection
	// ErrTruncated: an answer began, and was cut short before its end. With ProtocolOHTTP the part
	// that came is genuine. The client never repeats such a call by itself. errors.Is also finds
	// ErrConnection.
	ErrTruncated = fault.ErrTruncated
	// ErrInsecureURL: a URL is not https, and not the loopback exception of
	// [Config].InsecureAllowHTTP.
	ErrInsecureURL = fault.ErrInsecureURL
	// ErrEnvelope: an answer or request that should be an envelope is none. Nothing secret was
	// touched. With ProtocolOHTTP: the sealed content is no binary HTTP message.
	ErrEnvelope = fault.ErrEnvelope
	// ErrDecryption: an envelope does not open. It is one error for every cause, on purpose.
	ErrDecryption = fault.ErrDecryption
	// ErrResponseSchema: the opened answer is not a chat.completion object.
	ErrResponseSchema = fault.ErrResponseSchema
	// ErrReplay: the answer was seen before, or belongs to another request.
	ErrReplay = fault.ErrReplay
	// ErrTierDowngrade: the answer comes from a lower security tier than was asked for.
	ErrTierDowngrade = fault.ErrTierDowngrade
	// ErrTooLarge: a request, an answer, a key, data at rest or an audit event exceeds its limit.
	ErrTooLarge = fault.ErrTooLarge
	// ErrPublicKey: not an RSA public key that this package takes, see [ParsePublicKey], or no list
	// of key configurations.
	ErrPublicKey = fault.ErrPublicKey
	// ErrPassphrase: wrong passphrase, or a damaged key store or key file. Without the passphrase
	// the two look the same.
	ErrPassphrase = fault.ErrPassphrase
	// ErrPrivateKey: not a private key that can be imported. The cause says why, and which command
	// converts it.
	ErrPrivateKey = fault.ErrPrivateKey
	// ErrKeyStoreExists: there is a key store in the folder already. It was not touched.
	ErrKeyStoreExists = fault.ErrKeyStoreExists
	// ErrKeyStoreDamaged: the file is not a key store, or not one of a version that is known.
	ErrKeyStoreDamaged = fault.ErrKeyStoreDamaged
	// ErrInsecurePermissions: a file or folder is open to others, belongs to another user, or is a
	// link. The error's text names it, and the command that fixes it. For a folder that others may
	// need, such as /tmp or /var/log, it names no command: use a folder of its own.
	ErrInsecurePermissions = fault.ErrInsecurePermissions
	// ErrLocked: another process held the lock of the key store or the audit log until the
	// context's deadline, or for 10 s where the context has none.
	ErrLocked = fault.ErrLocked
	// ErrLockLost: the lock file was replaced while it was held. Nothing was written.
	ErrLockLost = fault.ErrLockLost
	// ErrUnconfirmed: a change of the key store was written and is in force, but the disk did not
	// confirm that it lasts, or it could not be read back. Repeat the change if it can be repeated;
	// after ChangePassphrase the new passphrase is the one that counts. Of an audit log: the event
	// is written, and not confirmed.
	ErrUnconfirmed = fault.ErrUnconfirmed
	// ErrMemoryLimit: memory for a secret cannot be locked, and MemoryRequired asks for it. Its
	// text has the figures, where the limit of the process (ulimit -l) is the reason.
	ErrMemoryLimit = fault.ErrMemoryLimit
	// ErrAudit: the Auditor did not take an event, so the call was stopped; after the fact (see
	// EventType), the call stands. Of a stream only the end is withheld. errors.Is also finds the
	// Auditor's error, except ErrUnconfirmed in it: a call that returns ErrUnconfirmed speaks of
	// the key store.
	ErrAudit = fault.ErrAudit
	// ErrAuditTampered: an audit log is not as it was written, or it or its folder is gone. See
	// AuditReport, OpenAuditLog and AuditLog.Record.
	ErrAuditTampered = fault.ErrAuditTampered
	// ErrAuditTorn: the last line of an audit log is unfinished, as a crash or a cut leaves it. See
	// AuditReport.
	ErrAuditTorn = fault.ErrAuditTorn
	// ErrClosed: the client, key store, gateway, audit log or secret was closed.
	ErrClosed = fault.ErrClosed
)

// ConfigError tells which field of a configuration is wrong, and why.
type ConfigError struct {
	Field string // "Config.BaseURL", "KeyStoreOptions.Bits", or of ConfigFromEnv "NOMYO_KEY_DIR"
	Err   error  // the reason; errors.Is finds ErrInsecureURL and others through it
}

func (e *ConfigError) Error() string {
	return "sealedchat: " + e.Field + ": " + fault.Reason(e.Err)
}

func (e *ConfigError) Unwrap() error { return e.Err }

func configError(field, format string, args ...any) error {
	return &ConfigError{Field: field, Err: fmt.Errorf(format, args...)}
}

// ServerKeyError reports that the server presented a key that is not trusted. Nothing was sealed to
// it. Ask the operator, by another way than this connection; if the change is legitimate, pass
// Signer, or Got where that is "", to [SecureCompletionClient.AcceptServerKey].
type ServerKeyError struct {
	Want []string // fingerprints: pinned, remembered, or in use until now; nil when there are none
	Got  string   // fingerprint of the key that the server presented
	// Signer is the fingerprint of the key that signed the list with Got, with ProtocolOHTTP and a
	// gateway that signs its list. AcceptServerKey takes it as well, and then trusts every key that
	// it signs.
	Signer string
	// Err is what Config.OnServerKey returned, or why evidence for the key was refused or did not
	// come ([Attested]), or nil.
	Err error

	// other names the protocol to which the pin belongs, "" where it is not known to be another's
	other string
}

// Error names the signer, where there is one: a configuration's own fingerprint is of no use after
// the next rotation.
func (e *ServerKeyError) Error() string {
	what, which := "key ", e.Got
	if e.Signer != "" {
		what, which = "list of keys, signed by ", e.Signer
	}
	s := "sealedchat: the server's " + what + which + ", is not trusted"
	if e.Signer == "" {
		s = "sealedchat: the server's " + what + which + " is not trusted"
	}
	if len(e.Want) > 0 {
		s += ", expected " + strings.Join(e.Want, " or ")
	}
	if e.Err != nil {
		return s + ": " + fault.Reason(e.Err)
	}
	if e.other != "" {
		return s + "; the pin is that of the same server's key for " + e.other
	}
	return s +
		"; nothing was sent: ask the operator what the gateway's Keys list, by another way " +
		"than this connection; if it is " + which + ", pin it or call AcceptServerKey with it " +
		"(a gateway without a key store has new keys at each start)"
}

func (e *ServerKeyError) Unwrap() error { return e.Err }

// OuterError is an answer in the clear where [ProtocolOHTTP] wants a sealed one: of a relay, of a
// proxy, of the gateway before it could open the request, of a server that does not speak the
// protocol, or of an attacker. Nothing tells which, so it proves nothing, not even that the request
// was not processed. The client never repeats the request by itself, except a GET or HEAD whose key
// the gateway no longer knows, once the gateway's trusted list has changed. errors.Is finds
// ErrConnection, and none of the sentinels of an *APIError.
type OuterError struct {
	StatusCode int    // 200 when the media type was another one
	Detail     string // printable characters only, 100 at most; untrusted
	// KeyChanged: the answer said that the gateway does not know the key, and the gateway's list,
	// which is trusted, now has another one, which the next call uses. Calling again is likely to
	// work. The caller decides, since an attacker who ends TLS can answer so when the request was
	// processed.
	KeyChanged bool

	unknownKey bool // 422, with the problem type that asks for another key
}

func (e *OuterError) Error() string {
	s := "sealedchat: an answer that is not sealed, and proves nothing: " +
		strconv.Itoa(e.StatusCode)
	if text := http.StatusText(e.StatusCode); text != "" {
		s += " " + text
	}
	if e.StatusCode >= 300 && e.StatusCode < 400 {
		s += " (redirects are not followed)"
	}
	if e.Detail != "" {
		s += ", detail " + strconv.Quote(e.Detail)
	}
	if e.StatusCode == http.StatusRequestEntityTooLarge {
		s += bodyLimits
	}
	if e.KeyChanged {
		s += "; the server's key has changed: try again if it may run twice"
	}
	return s
}

// bodyLimits says where a 413 comes from.
const bodyLimits = "; a body is over a limit: of a proxy in front (nginx: client_max_body_size), " +
	"or the gateway's MaxRequestBytes"

// Unwrap returns [ErrConnection].
func (e *OuterError) Unwrap() error { return ErrConnection }

// APIError is an answer that is not a completion: an HTTP status other than 200 (with
// [ProtocolOHTTP] the sealed one, see [OuterError] for the others), or an error object that was
// sealed with status 200. errors.Is maps it to the sentinels above, from [ErrInvalidRequest] to
// [ErrUnavailable].
type APIError struct {
	StatusCode int // of HTTP; 200 when the error is an object sealed in place of an answer
	// Code is the server's error code or type, and Detail its words: printable characters only, 100
	// at most, untrusted, often empty. They are empty when the words came sealed, and the gateway
	// does not say that they are its own: a model's server may quote the prompt. Sealed returns
	// those.
	Code, Detail string
	RetryAfter   time.Duration // from the Retry-After header, a year at most; 0 when there was none

	unprocessed bool // the gateway said so, under seal
	// sealed returns the words that came sealed; nil when none did. A function keeps them out of
	// everything that prints fields.
	sealed func() (code, detail string)
	// object returns OpenAI's error object where that came sealed, for an SDK; nil when none did.
	object func() *errorObject
}

// Sealed returns the server's code and words where they came sealed, and are not the gateway's own:
// printable characters only, 100 at most, often empty. They may quote the prompt. Nothing that
// prints, logs or marshals e shows them.
func (e *APIError) Sealed() (code, detail string) {
	if e.sealed == nil {
		return "", ""
	}
	return e.sealed()
}

// newSealedError is an error whose code and words are content.
func newSealedError(status int, retryAfter time.Duration, code, detail string) *APIError {
	return &APIError{StatusCode: status, RetryAfter: retryAfter,
		sealed: func() (string, string) { return code, detail }}
}

// errorObject is OpenAI's error object. Its words are content.
type errorObject struct{ message, kind, param, code string }

// maxMessage bounds the message of an error object, in bytes: an SDK gets it whole up to there.
const maxMessage = 4 << 10

// errorObjectOf finds an error object in the content of a sealed error, or nil.
func errorObjectOf(content []byte) *errorObject {
	var doc struct {
		Error struct{ Message, Type, Param, Code any }
	}
	if !chatjson.ValidObject(content) {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(content))
	dec.UseNumber()
	if dec.Decode(&doc) != nil {
		return nil // error is a string, say
	}
	message, ok := doc.Error.Message.(string)
	if !ok {
		return nil
	}
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage], "")
	}
	// the others are names
	name := func(v any) string { return fault.Sanitise(scalar(v), maxDetail) }
	return &errorObject{message, name(doc.Error.Type), name(doc.Error.Param), name(doc.Error.Code)}
}

// keeping adds the error object in content, for an SDK.
func (e *APIError) keeping(content []byte) *APIError {
	if object := errorObjectOf(content); object != nil {
		e.object = func() *errorObject { return object }
	}
	return e
}

func (e *APIError) Error() string {
	s := "sealedchat: the server answered " + strconv.Itoa(e.StatusCode)
	if text := http.StatusText(e.StatusCode); text != "" && e.StatusCode != http.StatusOK {
		s += " " + text
	}
	if e.sealed != nil {
		return s + " with a sealed error (APIError.Sealed has its words)"
	}
	if e.StatusCode >= 300 && e.StatusCode < 400 {
		s += " (redirects are not followed)"
	}
	if e.Code != "" {
		s += ", code " + strconv.Quote(e.Code)
	}
	if e.Detail != "" {
		s += ", detail " + strconv.Quote(e.Detail)
	}
	if e.StatusCode == http.StatusRequestEntityTooLarge && e.Detail == "" { // a gateway has words
		s += bodyLimits
	}
	return s
}

// Is reports whether target is the sentinel of e's status.
func (e *APIError) Is(target error) bool { return target == e.sentinel() }

func (e *APIError) sentinel() error {
	switch s := e.StatusCode; {
	case s == http.StatusUnauthorized:
		return ErrAuthentication
	case s == http.StatusForbidden:
		return ErrPermission
	case s == http.StatusNotFound:
		return ErrNotFound
	case s == http.StatusTooManyRequests:
		return ErrRateLimited
	case s == http.StatusServiceUnavailable:
		return ErrUnavailable
	case s >= 400 && s < 500:
		return ErrInvalidRequest
	default:
		return ErrServer
	}
}

// logText is an error for the log: an *APIError quotes the server, whose words can hold a prompt.
func logText(err error) string {
	if answer, ok := errors.AsType[*APIError](err); ok {
		return "status " + strconv.Itoa(answer.StatusCode)
	}
	if answer, ok := errors.AsType[*OuterError](err); ok {
		return "status " + strconv.Itoa(answer.StatusCode) + ", not sealed"
	}
	return err.Error()
}

const maxDetail = 100 // characters of a server's word that are kept

// newAPIError makes sense of an answer that is not 200. body may be cut short.
func newAPIError(status int, header http.Header, body []byte, now time.Time) *APIError {
	e := &APIError{StatusCode: status, RetryAfter: httpx.RetryAfter(header.Get("Retry-After"), now)}
	e.Code, e.Detail = errorDetail(body)
	return e
}

// errorDetail finds the words in an error body: FastAPI's detail (a string, a list or an object),
// OpenAI's error object, a message, or plain text. Markup says nothing.
func errorDetail(body []byte) (code, detail string) {
	body = bytes.TrimSpace(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")))
	if len(body) == 0 || body[0] == '<' {
		return "", ""
	}
	var doc any
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber() // so that a code of 500 is "500"
	err := dec.Decode(&doc)
	if err != nil || dec.InputOffset() < int64(len(body)) { // a text may begin with a number
		if body[0] == '{' || body[0] == '[' || body[0] == '"' && err != nil {
			return "", "" // JSON that was cut or is damaged: not words
		}
		return "", fault.Sanitise(string(body), maxDetail)
	}
	o, ok := doc.(map[string]any)
	if !ok {
		return "", fault.Sanitise(words(doc), maxDetail)
	}
	for _, name := range []string{"detail", "error", "message"} {
		if s := words(o[name]); s != "" {
			detail = s
			break
		}
	}
	if inner, ok := o["error"].(map[string]any); ok {
		code = cmp.Or(scalar(inner["code"]), scalar(inner["type"]))
	}
	code = cmp.Or(code, scalar(o["code"]))
	return fault.Sanitise(code, maxDetail), fault.Sanitise(detail, maxDetail)
}

// words finds the human text in one value of an error body.
func words(v any) string {
	switch v := v.(type) {
	case []any: // FastAPI's list of {loc, msg, type}
		var all []string
		for _, x := range v[:min(len(v), 4)] {
			if _, nested := x.([]any); nested {
				continue
			}
			if s := words(x); s != "" {
				all = append(all, s)
			}
		}
		return strings.Join(all, "; ")
	case map[string]any:
		return cmp.Or(scalar(v["message"]), scalar(v["msg"]), scalar(v["detail"]),
			scalar(v["error"]))
	default:
		return scalar(v)
	}
}

func scalar(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	}
	return ""
}
