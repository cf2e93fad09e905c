// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// Auditor takes the events of a client, a key store or a gateway: what it does with keys and sealed
// messages. [AuditLog.Record] keeps them in a file that cannot be changed unnoticed,
// [NewSlogAuditor] sends them to a logger; a program's own can add [Event].Details and hand the
// event on. nil drops them.
//
// An error stops the call: where the event comes before its effect, nothing is sent, used or handed
// out ([ErrAudit] with the Auditor's error). Events that report what has happened already (see
// [EventType]) cannot undo it: the call returns their error, joined to its own if it failed, and
// where there is no call it is logged.
//
// It is called from several goroutines, and holds up the call meanwhile. It must not call the
// client, gateway or key store that calls it, except [KeyStore.Seal] and [KeyStore.Open] of a
// store that tells nothing itself. ctx is the call's; for what has happened already it does not end
// with the call.
type Auditor func(ctx context.Context, e Event) error

// SeverityCritical is the highest severity of an [Event]: "CRITICAL" in an audit log, Error+4 in a
// logger.
const SeverityCritical = slog.LevelError + 4

// Event is one thing that happened. It holds ids, sizes and durations, never content: no prompt, no
// answer, no label of data at rest, no key, no passphrase. Fields that do not belong to its type
// are zero, and absent from its JSON.
type Event struct {
	// Time (UTC, in the years 0 to 9999), User (its name, or its number where it has none) and PID
	// say when and by whom. What is zero is filled in.
	Time time.Time `json:"time"`
	Type EventType `json:"type"`
	// Severity is how much attention the event wants: slog.LevelInfo, LevelWarn, LevelError or
	// SeverityCritical. 0 = that of the type; slog.LevelDebug makes it the lowest. In JSON it is
	// "INFO", "WARN", "ERROR" or "CRITICAL", the highest of them that it reaches.
	Severity slog.Level `json:"severity"`
	User     string     `json:"user"`
	PID      int        `json:"pid"`

	PayloadID string `json:"payload_id,omitempty"` // of the request, the same on both ends
	// Account is whose request it is, in a gateway: what GatewayConfig.Authenticate named it.
	Account string `json:"account,omitempty"`
	// Fingerprint is that of the key that the event is about, and OldFingerprint that of the key in
	// whose place it came. Server is the client's base URL, with "ohttp+" before it for
	// ProtocolOHTTP.
	Fingerprint    string       `json:"fingerprint,omitempty"`
	OldFingerprint string       `json:"old_fingerprint,omitempty"`
	Server         string       `json:"server,omitempty"`
	Path           string       `json:"path,omitempty"`       // of a file or folder
	Tier           SecurityTier `json:"tier,omitempty"`       // that was asked for
	Bits           int          `json:"bits,omitempty"`       // size of the key
	Keys           int          `json:"keys,omitempty"`       // in the store
	Generation     uint32       `json:"generation,omitempty"` // of data keys
	Bytes          int64        `json:"bytes,omitempty"`      // of plaintext
	Attempt        int          `json:"attempt,omitempty"`    // that failed, from 1
	Status         int          `json:"status,omitempty"`     // of HTTP
	// Wait is the time before the next attempt, and Duration that since the work, or the life,
	// began. Both are in nanoseconds in JSON. Reason is in this package's own words, never a
	// peer's.
	Wait     time.Duration `json:"wait_ns,omitempty"`
	Duration time.Duration `json:"duration_ns,omitempty"`
	Reason   string        `json:"reason,omitempty"`
	Memory   *MemoryStatus `json:"memory,omitempty"`
	// Attestation is what evidence for the key proved.
	Attestation *AttestationResult `json:"attestation,omitempty"`

	// Details are the program's own. The program sees to it that they hold no content.
	// When the event is written, the value of every member whose name contains key, password,
	// passphrase, secret, token or authorization, in whatever case and at whatever depth, becomes
	// "[REDACTED]". Values are what encoding/json makes of them: a struct's members are those of
	// its JSON, and text is text, also if there is JSON in it.
	Details map[string]any `json:"details,omitempty"`
}

// memoryNow is the state of protected memory, for an event.
func memoryNow() *MemoryStatus {
	m := MemoryReport()
	return &m
}

// fillIn fills in what is zero.
func (e *Event) fillIn() {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Time = e.Time.Round(0).UTC() // wall time, in one spelling
	if e.Severity == 0 {
		e.Severity = eventTypes[e.Type].severity
	}
	if e.User == "" {
		e.User = currentUser()
	}
	if e.PID == 0 {
		e.PID = os.Getpid()
	}
}

// currentUser is the user's name; os/user looks it up once.
func currentUser() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return strconv.Itoa(os.Geteuid())
}

// checkTime refuses what JSON has no form for.
func (e *Event) checkTime() error {
	if year := e.Time.UTC().Year(); year < 0 || year > 9999 {
		return fmt.Errorf("%w: %w: the event's Time is in the year %d, want 0 to 9999",
			ErrAudit, ErrInvalidRequest, year)
	}
	return nil
}

// eventJSON is the JSON of an event: its first three members, and the others as they are.
type eventJSON struct {
	Time     time.Time `json:"time"`
	Type     EventType `json:"type"`
	Severity string    `json:"severity"`
	plainEvent
}

type plainEvent Event

// MarshalJSON gives the event with what is secret in its details redacted. Its error is that of
// details that are no JSON, or [ErrAudit] for a Time outside of the years 0 to 9999.
func (e Event) MarshalJSON() ([]byte, error) {
	err := e.checkTime()
	if err != nil {
		return nil, err
	}
	if e.Details, err = redactDetails(e.Details); err != nil {
		return nil, err
	}
	return chatjson.Marshal(eventJSON{e.Time, e.Type, severityText(e.Severity), plainEvent(e)})
}

// UnmarshalJSON reads what MarshalJSON gives, as a line of an audit log has it.
func (e *Event) UnmarshalJSON(text []byte) error {
	j := eventJSON{Time: e.Time, Type: e.Type, plainEvent: plainEvent(*e)}
	if err := json.Unmarshal(text, &j); err != nil {
		return err
	}
	*e = Event(j.plainEvent)
	e.Time, e.Type = j.Time, j.Type
	if j.Severity != "" {
		e.Severity = parseSeverity(j.Severity)
	}
	return nil
}

// severityText is a level in JSON and in the attributes of a log.
func severityText(l slog.Level) string {
	switch {
	case l >= SeverityCritical:
		return "CRITICAL"
	case l >= slog.LevelError:
		return "ERROR"
	case l >= slog.LevelWarn:
		return "WARN"
	}
	return "INFO"
}

// parseSeverity takes slog's own names, too, and a name that it does not know for an error.
func parseSeverity(text string) (l slog.Level) {
	if text == "CRITICAL" {
		return SeverityCritical
	}
	if l.UnmarshalText([]byte(text)) != nil {
		return slog.LevelError
	}
	return l
}

// LogValue gives the event's members as a group, with what is secret in its details redacted.
func (e Event) LogValue() slog.Value { return slog.GroupValue(e.attrs()...) }

// attrs are the members of the event's JSON, in their order.
func (e Event) attrs() []slog.Attr {
	attrs := make([]slog.Attr, 0, 12)
	add := func(name string, value slog.Value, zero bool) {
		if !zero {
			attrs = append(attrs, slog.Attr{Key: name, Value: value})
		}
	}
	text := func(name, value string) { add(name, slog.StringValue(value), value == "") }
	number := func(name string, value int64) { add(name, slog.Int64Value(value), value == 0) }
	add("event_time", slog.TimeValue(e.Time), e.Time.IsZero())
	text("type", string(e.Type))
	text("severity", severityText(e.Severity))
	text("user", e.User)
	number("pid", int64(e.PID))
	text("payload_id", e.PayloadID)
	text("account", e.Account)
	text("fingerprint", e.Fingerprint)
	text("old_fingerprint", e.OldFingerprint)
	text("server", e.Server)
	text("path", e.Path)
	text("tier", string(e.Tier))
	number("bits", int64(e.Bits))
	number("keys", int64(e.Keys))
	number("generation", int64(e.Generation))
	number("bytes", e.Bytes)
	number("attempt", int64(e.Attempt))
	number("status", int64(e.Status))
	add("wait", slog.DurationValue(e.Wait), e.Wait == 0)
	add("duration", slog.DurationValue(e.Duration), e.Duration == 0)
	text("reason", e.Reason)
	if m := e.Memory; m != nil {
		attrs = append(attrs, slog.Group("memory", "all_locked", m.AllLocked, "locked", m.Locked,
			"unlocked", m.Unlocked, "limit", m.Limit))
	}
	if a := e.Attestation; a != nil {
		attrs = append(attrs, slog.Group("attestation", "format", a.Format, "measurement",
			a.Measurement, "tcb", a.TCB, "verified", a.Verified))
	}
	if len(e.Details) > 0 {
		details, err := redactDetails(e.Details)
		add("details", slog.AnyValue(details), err != nil)
		add("details", slog.StringValue("not JSON"), err == nil)
	}
	return attrs
}

// NewSlogAuditor sends events to l, as records with the message "audit" at the event's severity.
// slog's handlers tell nobody whether they wrote anything, so it never fails, except for an event
// of an unknown type ([ErrInvalidRequest]) or outside of the years 0 to 9999 ([ErrAudit]).
func NewSlogAuditor(l *slog.Logger) Auditor {
	return func(ctx context.Context, e Event) error {
		if !e.Type.valid() {
			return errEventType(e.Type)
		}
		e.fillIn()
		if err := e.checkTime(); err != nil {
			return err
		}
		l.LogAttrs(ctx, e.Severity, "audit", e.attrs()...)
		return nil
	}
}

func errEventType(t EventType) error {
	return fmt.Errorf("%w: there is no audit event %q", ErrInvalidRequest, fault.Sanitise(string(t),
		40))
}

// auditSink is where a client, a key store or a gateway hands its events to the Auditor. A nil one
// and the zero one have no Auditor, and drop them.
type auditSink struct{ to atomic.Pointer[Auditor] }

func (t *auditSink) set(a Auditor) {
	if a == nil {
		t.to.Store(nil)
		return
	}
	t.to.Store(&a)
}

// tell hands an event to the Auditor, and returns its error as one that is ErrAudit. No lock may be
// held that the Auditor's work can need.
func (t *auditSink) tell(ctx context.Context, e Event) error {
	if t == nil {
		return nil
	}
	to := t.to.Load()
	if to == nil {
		return nil
	}
	if e.Type.happened() {
		ctx = context.WithoutCancel(ctx)
	}
	e.fillIn()
	if err := (*to)(ctx, e); err != nil {
		return &auditError{e.Type, err}
	}
	return nil
}

// auditError is ErrAudit and all that the Auditor's error is, except ErrUnconfirmed, which the
// caller would take for its own key store's.
type auditError struct {
	event EventType
	err   error
}

func (e *auditError) Error() string {
	return ErrAudit.Error() + " (" + string(e.event) + "): " + e.err.Error()
}

func (e *auditError) Is(target error) bool {
	return target == ErrAudit || target != ErrUnconfirmed && errors.Is(e.err, target)
}

func (e *auditError) As(target any) bool { return errors.As(e.err, target) }

// failed hands on an event about err, the error of a call: what comes back is err, with the
// Auditor's error beside it.
func (t *auditSink) failed(ctx context.Context, err error, e Event) error {
	return fault.Join(err, t.tell(ctx, e))
}

// fields is an event's JSON without the braces.
func (e Event) fields() ([]byte, error) {
	b, err := e.MarshalJSON() // not json.Marshal, which would escape for HTML
	if errors.Is(err, ErrAudit) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%w: the details of an audit event: %s", ErrInvalidRequest,
			jsonProblem(err))
	}
	return b[1 : len(b)-1], nil
}

// secretNames are what a member's name contains whose value is nobody's business.
var secretNames = []string{"key", "password", "passphrase", "secret", "token", "authorization"}

// redactDetails copies details as JSON sees them, which is how they are written, and replaces what
// is secret.
func redactDetails(details map[string]any) (map[string]any, error) {
	if len(details) == 0 {
		return nil, nil
	}
	text, err := json.Marshal(details)
	if err != nil {
		return nil, err
	}
	var copied map[string]any
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber() // 2^60 stays what it is
	if err := dec.Decode(&copied); err != nil {
		return nil, err
	}
	redact(copied)
	return copied, nil
}

// redact works in place. encoding/json bounds the depth.
func redact(v any) {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			if namesSecret(name) {
				v[name] = redacted
			} else {
				redact(value)
			}
		}
	case []any:
		for _, value := range v {
			redact(value)
		}
	}
}

// namesSecret folds case in both directions: some letters have only one lower or upper neighbour in
// ASCII.
func namesSecret(name string) bool {
	name = strings.ToLower(strings.ToUpper(name))
	for _, secret := range secretNames {
		if strings.Contains(name, secret) {
			return true
		}
	}
	return false
}

// jsonProblem says what kept a value from becoming JSON, without repeating the value.
func jsonProblem(err error) string {
	if e, ok := errors.AsType[*json.UnsupportedTypeError](err); ok {
		return fmt.Sprintf("a %s is no JSON", e.Type)
	}
	return "not JSON"
}
