// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// TestEventTypes: every event that the package declares has a severity, and docs/audit-log.md tells
// of it.
func TestEventTypes(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "audit_events.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	declared := make(map[EventType]bool)
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if name, ok := spec.Type.(*ast.Ident); ok && name.Name == "EventType" {
			text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			declared[EventType(text)] = true
		}
		return true
	})
	security, err := os.ReadFile("docs/audit-log.md")
	if err != nil {
		t.Fatal(err)
	}
	if len(declared) < 25 || len(declared) != len(eventTypes) {
		t.Errorf("%d are declared, %d have a severity", len(declared), len(eventTypes))
	}
	for name := range declared {
		info, ok := eventTypes[name]
		switch info.severity {
		case slog.LevelInfo, slog.LevelWarn, slog.LevelError, SeverityCritical:
		default:
			t.Errorf("%s: severity %v", name, info.severity)
		}
		if !ok || !bytes.Contains(security, []byte("`"+string(name)+"`")) {
			t.Errorf("%s is not in docs/audit-log.md", name)
		}
	}
}

// TestEventTable: the table in EventType's documentation says what the code does.
func TestEventTable(t *testing.T) {
	text, err := os.ReadFile("audit_events.go")
	if err != nil {
		t.Fatal(err)
	}
	told := map[bool]string{false: "before", true: "after"}
	rows := 0
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if !strings.HasPrefix(line, "//\tEvent") {
			continue
		}
		name := EventType(strings.ToLower(
			strings.Join(camel.FindAllString(strings.TrimPrefix(words[1],
				"Event"), -1), "_")))
		info, ok := eventTypes[name]
		if want := []string{told[info.happened], severityText(info.severity)}; !ok ||
			!slices.Equal(words[2:4], want) {
			t.Errorf("%s: the table says %v, want %v", name, words[2:4], want)
		}
		rows++
	}
	if rows != len(eventTypes) {
		t.Errorf("%d rows for %d types", rows, len(eventTypes))
	}
}

var camel = regexp.MustCompile(`[A-Z][a-z]*`)

// TestSeverities: a level in the file is one of four words, and each is read back.
func TestSeverities(t *testing.T) {
	for level, want := range map[slog.Level]string{
		slog.LevelDebug: "INFO", slog.LevelDebug - 100: "INFO", slog.LevelInfo + 1: "INFO",
		slog.LevelWarn - 1: "INFO",
		slog.LevelWarn:     "WARN", slog.LevelError - 1: "WARN", slog.LevelError: "ERROR",
		SeverityCritical - 1: "ERROR",
		SeverityCritical:     "CRITICAL", SeverityCritical + 100: "CRITICAL",
	} {
		e := Event{Type: EventKeyDeleted, Severity: level} // whose own is WARN
		e.fillIn()
		text, err := json.Marshal(e)
		if err != nil || !bytes.Contains(text, []byte(`"severity":"`+want+`"`)) {
			t.Errorf("%v: %s, %v", level, text, err)
		}
		var back Event
		if err := json.Unmarshal(text, &back); err != nil || severityText(back.Severity) != want {
			t.Errorf("%v: read as %v, %v", level, back.Severity, err)
		}
	}
	for text, want := range map[string]slog.Level{
		`"INFO"`: 0, `"WARN"`: slog.LevelWarn, `"ERROR"`: slog.LevelError,
		`"CRITICAL"`: SeverityCritical,
		`"ERROR+4"`:  SeverityCritical,
		`"DEBUG"`:    slog.LevelDebug, `"NOTICE"`: slog.LevelError, `""`: 0,
	} {
		var e Event
		if err := json.Unmarshal([]byte(`{"type":"note","severity":`+text+`,"pid":7}`),
			&e); err != nil ||
			e.Severity != want || e.PID != 7 {
			t.Errorf("%s: %+v, %v", text, e, err)
		}
	}
	for _, text := range []string{`{"severity":4}`, `{"time":1}`, `{"pid":"x"}`, `[]`, `{`} {
		if err := json.Unmarshal([]byte(text), &Event{}); err == nil {
			t.Errorf("%s is an event", text)
		}
	}
	e := Event{Type: EventKeyDeleted}
	if e.fillIn(); e.Severity != slog.LevelWarn {
		t.Errorf("of the type: %v", e.Severity)
	}
}

type detailStruct struct {
	APIKey string `json:"apiKey"`
	Name   string
	Inner  struct {
		Password []byte
		Deeper   *detailStruct `json:",omitempty"`
	}
}

// secretDetails hold the marker under every name whose value is redacted, and keepers beside them.
func secretDetails() map[string]any {
	inner := detailStruct{APIKey: leak, Name: "kept-1"}
	inner.Inner.Password = []byte(leak)
	inner.Inner.Deeper = &detailStruct{APIKey: leak, Name: "kept-2"}
	return map[string]any{
		"key": leak, "API_KEY": leak, "apiKeyId": leak, "Password": leak, "db-password-2": leak,
		"PassPhrase": leak,
		"passphrase": leak, "clientSecret": leak, "SECRET": leak, "token": leak, "maxTokens": leak,
		"Authorization":       leak,
		"proxy-authorization": []any{leak}, "\u212aey": leak, "\u017fecret": leak,
		"tokens": map[string]any{"a": leak, "b": []string{leak}},
		"list": []any{map[string]any{"secret": leak, "kept": "kept-3"},
			[]any{map[string]string{"key": leak}}},
		"struct": inner, "pointer": &inner,
		"typed": map[string][]map[string]string{"x": {{"token": leak,
			"y": "kept-4"}}},
		"raw": json.RawMessage(`{"a":{"pass\u0077ord":"` + leak +
			`","kept":"kept-5","n":1152921504606846977}}`),
		"wrapped": &Secret{}, "number": 1 << 60, "null": nil, "true": true, "plain": "kept-6",
	}
}

func TestRedactedDetails(t *testing.T) {
	e := Event{Type: EventNote, Details: secretDetails()}
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer
	if err := NewSlogAuditor(slog.New(slog.NewJSONHandler(&logged, nil)))(t.Context(),
		e); err != nil {
		t.Fatal(err)
	}
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "event", e)
	l, path, _ := startAuditLog(t, nil)
	if err := l.Record(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{"JSON": string(text), "slog": logged.String(),
		"file": string(readLog(t, path))} {
		if testkit.Leaks(text) || strings.Contains(text, "TGVhay00ZDFm") { // base64 of the marker
			t.Errorf("%s: the marker is in %s", what, text)
		}
		for _, kept := range []string{"kept-1", "kept-2", "kept-3", "kept-4", "kept-5", "kept-6",
			"1152921504606846977", "1152921504606846976", redacted} {
			if !strings.Contains(text, kept) {
				t.Errorf("%s: %s is missing", what, kept)
			}
		}
	}
	if e.Details["key"] != leak {
		t.Error("the caller's own map was changed")
	}
	for name, secret := range map[string]bool{"key": true, "monkey": true, "ke y": false,
		"pass": false, "auth": false, "": false, "toKen": true, "server": false} {
		if namesSecret(name) != secret {
			t.Errorf("%q: %v", name, !secret)
		}
	}
}

// FuzzRedact: whatever the details are, no string under a secret name comes out.
func FuzzRedact(f *testing.F) {
	f.Add([]byte(`{"key":"x","a":[{"token":["` + leak + `"]}]}`))
	f.Add([]byte(`{"a":{"b":{"PASSWORD":{"c":"` + leak + `"}}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var details map[string]any
		if json.Unmarshal(text, &details) != nil {
			return
		}
		got, err := redactDetails(details)
		if err != nil {
			t.Fatal(err)
		}
		var walk func(v any)
		walk = func(v any) {
			switch v := v.(type) {
			case map[string]any:
				for name, value := range v {
					if namesSecret(name) && value != redacted {
						t.Errorf("%q is %v", name, value)
					}
					walk(value)
				}
			case []any:
				for _, value := range v {
					walk(value)
				}
			}
		}
		walk(got)
	})
}

func TestEventJSON(t *testing.T) {
	e := Event{
		Time: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Type: EventRetry,
		Severity: slog.LevelWarn,
		User:     "u\n<\xff>", PID: 7, PayloadID: "p", Account: "a", Fingerprint: "f",
		OldFingerprint: "o", Server: "s", Path: "/a", Tier: TierHigh, Bits: 1, Keys: 2,
		Generation: 3,
		Bytes:      4, Attempt: 5, Status: 6,
		Wait: time.Second, Duration: time.Millisecond, Reason: "r",
		Memory: &MemoryStatus{AllLocked: true,
			Locked: 8, Unlocked: 7, Limit: 9},
		Attestation: &AttestationResult{Format: "f", Measurement: "m", TCB: "t",
			Verified: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)},
		Details: map[string]any{"a": "b"},
	}
	v := reflect.ValueOf(e)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("this test does not set %s", v.Type().Field(i).Name)
		}
	}
	text, err := e.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	var back Event
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	back.User = e.User
	if !reflect.DeepEqual(back, e) {
		t.Errorf("%s is read as %+v", text, back)
	}
	if bytes.ContainsAny(text, "\n") || !json.Valid(text) {
		t.Errorf("%q", text)
	}
	// slog gets the same members.
	var members map[string]any
	if err := json.Unmarshal(text, &members); err != nil {
		t.Fatal(err)
	}
	have := make(map[string]bool)
	for _, a := range e.attrs() {
		have[a.Key] = true
	}
	for name := range members {
		switch name = strings.TrimSuffix(name, "_ns"); name {
		case "time":
			name = "event_time"
		}
		if !have[name] {
			t.Errorf("slog has no %s", name)
		}
	}
	if len(have) != len(members) {
		t.Errorf("%d members, %d attributes", len(members), len(have))
	}
}

func TestSlogAuditor(t *testing.T) {
	var text bytes.Buffer
	a := NewSlogAuditor(slog.New(slog.NewJSONHandler(&text, nil)))
	for _, c := range []struct {
		e     Event
		level string
	}{
		{Event{Type: EventKeyLoaded}, "INFO"}, {Event{Type: EventKeyDeleted},
			"WARN"}, {Event{Type: EventReplayRefused}, "ERROR"},
		{Event{Type: EventServerKeyRefused}, "ERROR+4"}, {Event{Type: EventNote,
			Severity: SeverityCritical}, "ERROR+4"},
		{Event{Type: EventNote, Details: map[string]any{"f": func() {}}}, "INFO"},
	} {
		text.Reset()
		if err := a(t.Context(), c.e); err != nil {
			t.Fatal(err)
		}
		var line map[string]any
		if err := json.Unmarshal(text.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		if line["level"] != c.level || line["msg"] != "audit" || line["type"] != string(c.e.Type) ||
			line["user"] == "" || line["pid"] != float64(os.Getpid()) {
			t.Errorf("%s: %v", c.e.Type, line)
		}
	}
	if err := a(t.Context(), Event{Type: "x"}); !errors.Is(err, ErrInvalidRequest) {
		t.Errorf("%v", err)
	}
}

// What an event says happened before the call ended is told although the call has ended.
func TestTellAfterTheEnd(t *testing.T) {
	var tell auditSink
	var ended []error
	tell.set(Auditor(func(ctx context.Context, _ Event) error {
		ended = append(ended,
			ctx.Err())
		return nil
	}))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := errors.Join(tell.tell(ctx, Event{Type: EventReplayRefused}), tell.tell(ctx,
		Event{Type: EventRequestSealed})); err != nil {
		t.Fatal(err)
	}
	if ended[0] != nil || ended[1] == nil {
		t.Errorf("%v", ended)
	}
	tell.set(nil)
	if err := tell.tell(ctx, note(1)); err != nil || len(ended) != 2 {
		t.Errorf("%v, %v", err, ended)
	}
	var none *auditSink
	if err := none.tell(ctx, note(1)); err != nil {
		t.Error(err)
	}
}
