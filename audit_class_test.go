// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// auditorsOwn are errors of an Auditor that ships events, and that look like those of the client's
// own server.
func auditorsOwn() map[string]error {
	return map[string]error{
		"a 400": fmt.Errorf("ship: %w", &APIError{StatusCode: 400}),
		"a 429": fmt.Errorf("ship: %w", &APIError{StatusCode: 429, RetryAfter: time.Second,
			unprocessed: true}),
		"a 503":             &APIError{StatusCode: 503, RetryAfter: time.Second},
		"an outer 422":      &OuterError{StatusCode: 422, unknownKey: true},
		"an invalid one":    fmt.Errorf("ship: %w", ErrInvalidRequest),
		"too large":         fmt.Errorf("ship: %w", errRequestTooLarge),
		"not trusted":       &ServerKeyError{Got: strings.Repeat("0", 64)},
		"a connection":      unsent(fault.Connection("ship", io.EOF, false)),
		"a refused opening": fmt.Errorf("ship: %w", ErrDecryption),
	}
}

// An answer that the Auditor does not take is not asked for again, however his error looks,
// although the server has another key by then.
func TestAuditorsErrorIsNotTheServers(t *testing.T) {
	for name, own := range auditorsOwn() {
		s := fakes.NewServer(t)
		fail := true
		c := sealedClient(t, s, func(c *Config) {
			c.MaxRetries = 3
			c.Audit = Auditor(func(_ context.Context, e Event) error {
				if e.Type != EventResponseOpened || !fail {
					return nil
				}
				s.Present("server-4096")
				return own
			})
		})
		c.retry.base = time.Microsecond
		if _, err := c.Chat(t.Context(), ask("?")); !errors.Is(err, ErrAudit) ||
			!errors.Is(err, own) {
			t.Errorf("%s: %v", name, err)
		}
		if gets, posts := s.Counts(); gets != 1 || posts != 1 {
			t.Errorf("%s: %d fetches, %d posts", name, gets, posts)
		}
		s.Present("rsa-2048")
		req, _ := http.NewRequest(http.MethodPost, "https://server.test/chat/completions",
			strings.NewReader(`{"model":"m","messages":[]}`))
		resp, err := c.HTTPClient().Do(req)
		if !errors.Is(err, ErrAudit) || !errors.Is(err, own) {
			t.Errorf("%s: an SDK gets %v, %v", name, resp, err)
		}
		if gets, posts := s.Counts(); gets != 1 || posts != 2 {
			t.Errorf("%s: %d fetches, %d posts", name, gets, posts)
		}
		fail = false
	}
}

func TestAuditorsErrorIsNotTheGateways(t *testing.T) {
	for name, own := range auditorsOwn() {
		for _, event := range []EventType{EventServerKeyFirstSeen, EventRequestSealed,
			EventResponseOpened} {
			g := fakes.NewGateway(t, answerText("x"))
			var told []EventType
			c := directClient(t, g, func(c *Config) {
				c.MaxRetries = 3
				c.Audit = Auditor(func(_ context.Context, e Event) error {
					told = append(told, e.Type)
					if e.Type == event {
						g.Rotate()
						return own
					}
					return nil
				})
			})
			c.retry.base = time.Microsecond
			want := func(err error) {
				t.Helper()
				if !errors.Is(err, ErrAudit) || !errors.Is(err, own) {
					t.Errorf("%s at %s: %v", name, event, err)
				}
				fetches, posts := g.Counts()
				if fetches != 1 || (posts == 1) != (event == EventResponseOpened) {
					t.Errorf("%s at %s: %d fetches, %d posts", name, event, fetches, posts)
				}
				if event == EventServerKeyFirstSeen && told[len(told)-1] != event {
					t.Errorf("%s at %s: told %v", name, event, told)
				}
				g.Set(func() { g.Fetches, g.Posts = 0, 0 })
				c.server.mu.Lock()
				c.server.key = nil // asks again
				c.server.mu.Unlock()
			}
			_, err := c.Chat(t.Context(), ask("x"))
			want(err)
			for _, path := range []string{"/v1/chat/completions", "/v1/embeddings"} {
				if path == "/v1/embeddings" && event == EventResponseOpened {
					continue // which is the end of the body
				}
				resp, err := c.HTTPClient().Post("https://gateway.test"+path, mediaJSON,
					strings.NewReader(`{"model":"m","messages":[]}`))
				if err == nil {
					t.Errorf("%s at %s: an SDK gets %d", name, event, resp.StatusCode)
					_ = resp.Body.Close()
				}
				want(err)
			}
			for _, err = range c.Stream(t.Context(), ask("x")) {
				if err != nil {
					break
				}
			}
			if event != EventResponseOpened {
				want(err)
			}
			c.audit.set(nil)
		}
	}
}

// A server's new key that the Auditor does not take is not sealed to, and the error says so beside
// the refusal.
func TestAuditorRefusesTheNewKey(t *testing.T) {
	s := fakes.NewServer(t)
	h := &heard{}
	c := sealedClient(t, s, func(c *Config) { c.Audit = h.Record })
	if err := c.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Present("server-4096")
	h.failOn(errDeaf, EventServerKeyChanged)
	_, err := c.Chat(t.Context(), ask("?"))
	if answer, ok := errors.AsType[*APIError](err); !ok || answer.StatusCode != 400 ||
		!errors.Is(err,
			ErrAudit) || !errors.Is(err, errDeaf) {
		t.Errorf("got %v", err)
	}
	if _, posts := s.Counts(); posts != 1 {
		t.Errorf("%d posts", posts)
	}
	h.failOn(nil)
}

func unsent(e *fault.ConnectionError) error {
	e.Unsent = true
	return e
}

// Whoever asked for a stream and got a whole answer that is refused, finds that in the audit log as
// with Chat.
func TestRefusedStreamsAreTold(t *testing.T) {
	testkit.NeedLocked(t, 256<<10) // or less is locked than before, which is an event
	badCalls := strings.Replace(fakes.FineCompletion("x"), `"message":{`,
		`"message":{"tool_calls":5,`, 1)
	foreign := func() string {
		return strings.Replace(fakes.FineCompletion("x"), `{`,
			`{"_metadata":{"payload_id":"`+newUUID()+`"},`, 1)
	}
	for name, test := range map[string]struct {
		answer func() string
		want   error
		ohttp  string
		v1     string
	}{
		"another request's": {foreign, ErrReplay, "request_sealed response_opened replay_refused",
			"request_sealed replay_refused"},
		"no completion": {func() string { return `{"id":1}` }, ErrResponseSchema,
			"request_sealed response_opened schema_refused", "request_sealed schema_refused"},
		"no tool calls": {func() string { return badCalls }, ErrResponseSchema,
			"request_sealed response_opened schema_refused", "request_sealed schema_refused"},
		"a server's error": {func() string {
			return `{"error":{"message":"x"}}`
		}, ErrServer, "request_sealed response_opened", "request_sealed"},
	} {
		h := &heard{}
		g := fakes.NewGateway(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, test.answer())
		})
		s := fakes.NewServer(t)
		s.Answer = func(q *fakes.Question) *http.Response { return q.Seal(test.answer()) }
		for protocol, c := range map[string]struct {
			client *SecureCompletionClient
			want   string
		}{
			"ohttp": {directClient(t, g, func(c *Config) { c.Audit = h.Record }), test.ohttp},
			"v1":    {sealedClient(t, s, func(c *Config) { c.Audit = h.Record }), test.v1},
		} {
			if err := c.client.Warm(t.Context()); err != nil {
				t.Fatal(err)
			}
			h.take()
			what := name + " over " + protocol
			if err := callsOf(c.client)["Stream"](t.Context()); !errors.Is(err, test.want) {
				t.Errorf("%s: %v", what, err)
			}
			events := h.mustHear(t, what, c.want)
			if last := events[len(events)-1]; last.PayloadID == "" ||
				last.PayloadID != events[0].PayloadID {
				t.Errorf("%s: %+v", what, last)
			}
			resp, err := c.client.HTTPClient().Post("https://server.test/v1/chat/completions",
				"application/json",
				strings.NewReader(`{"model":"m","messages":[],"stream":true}`))
			if err == nil {
				resp.Body.Close()
			}
			if answered := test.want == ErrServer; answered != (err == nil) ||
				!answered && !errors.Is(err, test.want) {
				t.Errorf("%s, of an SDK: %v, %v", what, resp, err)
			}
			h.mustHear(t, what+", of an SDK", c.want)
		}
	}
}

// TestAdviceHarmsNobody follows each way to a folder of which others need something: no error
// advises a command that takes it away from them, and what does not exist is reported first.
func TestAdviceHarmsNobody(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("modes are for Unix systems")
	}
	keys, _ := createWeak(t, storeDir(t), nil)
	stored, err := os.ReadFile(filepath.Join(keys.folder().Path(), "keystore.json"))
	if err != nil {
		t.Fatal(err)
	}
	command := regexp.MustCompile(`chmod|chown|fix it with|\brm\b`)
	for what, mode := range map[string]os.FileMode{"readable": 0o755,
		"sticky":     0o777 | os.ModeSticky,
		"of a group": 0o775 | os.ModeSetgid} {
		dir := filepath.Join(t.TempDir(), "shared")
		log := filepath.Join(dir, "audit.log")
		theirs := filepath.Join(dir, "theirs")
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(theirs, nil, 0o644), os.Chmod(dir,
			mode)); err != nil {
			t.Fatal(err)
		}
		ways := map[string]func() error{
			"create a store": func() error {
				_, err := CreateKeyStore(t.Context(), dir, secret(t, passphrase), nil)
				return err
			},
			"open a store": func() error { _, err := tryWeak(t, dir, passphrase, nil); return err },
			"open an audit log": func() error {
				_, err := OpenAuditLog(t.Context(), log, keys,
					nil)
				return err
			},
			"verify a log": func() error { return verifyError(t, log, keys) },
		}
		check := func(want error, names ...string) {
			t.Helper()
			for _, name := range names {
				err := ways[name]()
				if !errors.Is(err, want) || command.MatchString(err.Error()) {
					t.Errorf("%s, %s: %v", what, name, err)
				}
				if want == ErrInsecurePermissions &&
					!strings.Contains(err.Error(), "use a folder of its own") {
					t.Errorf("%s, %s: %v gives no advice", what, name, err)
				}
			}
		}
		check(ErrInsecurePermissions, "create a store", "open an audit log")
		check(fs.ErrNotExist, "open a store", "verify a log")
		writeLog(t, filepath.Join(dir, "keystore.json"), stored)
		writeLog(t, log, nil)
		check(ErrInsecurePermissions, "open a store", "open an audit log", "verify a log")
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != mode.Perm() {
			t.Errorf("%s: %v, %v", what, info, err)
		}
	}
}

func verifyError(t *testing.T, path string, keys *KeyStore) error {
	_, err := VerifyAuditLog(t.Context(), path, keys, "")
	return err
}

// note is an event of a program's own, numbered.
func note(n int) Event { return Event{Type: EventNote, Details: map[string]any{"n": n}} }

// startAuditLog opens a log in a new folder, with a key store of its own.
func startAuditLog(t testing.TB, o *AuditLogOptions) (l *AuditLog, path string, keys *KeyStore) {
	t.Helper()
	keys, _ = createWeak(t, storeDir(t), nil)
	path = filepath.Join(t.TempDir(), "log", "audit.log")
	return openAuditLog(t, path, keys, o), path, keys
}

func openAuditLog(t testing.TB, path string, keys *KeyStore, o *AuditLogOptions) *AuditLog {
	t.Helper()
	l, err := OpenAuditLog(t.Context(), path, keys, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// writeNotes writes the notes from to to-1.
func writeNotes(t testing.TB, l *AuditLog, from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		if err := l.Record(t.Context(), note(n)); err != nil {
			t.Fatalf("note %d: %v", n, err)
		}
	}
}

// mustVerify expects a log that is as it was written.
func mustVerify(t testing.TB, path string, keys *KeyStore, head string) *AuditReport {
	t.Helper()
	r, err := VerifyAuditLog(t.Context(), path, keys, head)
	if err != nil {
		t.Fatalf("%v\n%s", err, logText0(path))
	}
	return r
}

// mustFind expects a finding, and its sentinel.
func mustFind(t testing.TB, what, path string, keys *KeyStore, head string, want AuditReport) {
	t.Helper()
	got, err := VerifyAuditLog(t.Context(), path, keys, head)
	if got == nil || err == nil || got.Finding != want.Finding || got.Line != want.Line ||
		filepath.Base(got.File) != want.File ||
		got.Seq != want.Seq || got.Missing != want.Missing {
		t.Errorf("%s: found %+v, %v, want %+v", what, got, err, want)
		return
	}
	if errors.Is(err, ErrAuditTorn) == errors.Is(err, ErrAuditTampered) || errors.Is(err,
		ErrAuditTorn) != (got.Finding == AuditTorn) {
		t.Errorf("%s: the sentinel of %v", what, err)
	}
	if !strings.Contains(err.Error(), got.File) || !strings.HasSuffix(err.Error(), got.Finding) {
		t.Errorf("%s: the words of %v", what, err)
	}
}

func logText0(path string) string {
	text, _ := os.ReadFile(path)
	return string(text)
}

func readLog(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func writeLog(t testing.TB, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// logLines are the lines of a log, with their line feeds.
func logLines(t testing.TB, path string) [][]byte {
	t.Helper()
	lines := bytes.SplitAfter(readLog(t, path), []byte("\n"))
	return lines[:len(lines)-1]
}

// heard is an Auditor that keeps what it is told, and fails where it is to.
type heard struct {
	mu     sync.Mutex
	events []Event
	fail   map[EventType]error
}

func (h *heard) Record(_ context.Context, e Event) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.fail[e.Type]; err != nil {
		return err
	}
	h.events = append(h.events, e)
	return nil
}

func (h *heard) failOn(err error, types ...EventType) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fail = make(map[EventType]error)
	for _, t := range types {
		h.fail[t] = err
	}
}

// take returns what was told since the last time.
func (h *heard) take() []Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	events := h.events
	h.events = nil
	return events
}

func typesOf(events []Event) string {
	var types []string
	for _, e := range events {
		types = append(types, string(e.Type))
	}
	return strings.Join(types, " ")
}

// mustHear expects events of these types since the last time, and returns them.
func (h *heard) mustHear(t testing.TB, what, types string) []Event {
	t.Helper()
	events := h.take()
	if got := typesOf(events); got != types {
		t.Errorf("%s: told %q, want %q", what, got, types)
	}
	for _, e := range events {
		if e.Time.IsZero() || e.PID != os.Getpid() || e.User == "" ||
			e.Severity != eventTypes[e.Type].severity {
			t.Errorf("%s: %s is not filled in: %+v", what, e.Type, e)
		}
	}
	return events
}
