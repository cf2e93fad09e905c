// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// leak begins every text that no error and no log line may repeat.
const leak = testkit.Leak

// mustNotLeak prints err in every way that programs print errors, and looks for the marker.
func mustNotLeak(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		t.Error("there is no error to look at")
		return
	}
	outputs := []string{err.Error(), fmt.Sprintf("%v|%+v|%#v|%s|%q|%x", err, err, err, err, err, err)}
	for cause := err; cause != nil; cause = errors.Unwrap(cause) {
		outputs = append(outputs, fmt.Sprintf("%+v|%#v", cause, cause))
		if b, err := json.Marshal(cause); err == nil {
			outputs = append(outputs, string(b))
		}
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "err", err)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "err", err)
	for _, out := range append(outputs, log.String()) {
		if testkit.Leaks(out) {
			t.Errorf("the marker is in %.300q", out)
			return
		}
	}
}

// logbook is a log at debug level that no marker may get into.
type logbook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func startLogbook(t *testing.T) (*logbook, *slog.Logger) {
	t.Helper()
	l := &logbook{}
	t.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.text.Len() == 0 {
			t.Error("nothing was logged: this test proves nothing")
		}
		for line := range strings.Lines(l.text.String()) {
			if testkit.Leaks(line) {
				t.Errorf("the marker is in the log: %.400q", line)
			}
		}
	})
	return l, slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// rawServer answers every request with whatever bytes answer returns, and then hangs up.
func rawServer(t *testing.T, answer func(*http.Request) []byte) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(time.Minute))
				req, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					return
				}
				_, _ = io.Copy(io.Discard, req.Body)
				_, _ = conn.Write(answer(req))
			})
		}
	})
	return "http://" + l.Addr().String()
}

func ok(body string, headers ...string) []byte {
	return status("200 OK", body, headers...)
}

func status(line, body string, headers ...string) []byte {
	head := "HTTP/1.1 " + line + "\r\n" + strings.Join(append(headers, ""), "\r\n")
	return fmt.Appendf(nil, "%sContent-Length: %d\r\nConnection: close\r\n\r\n%s", head, len(body), body)
}

// rawAnswers are what a broken or hostile peer may say, each with the marker in it.
func rawAnswers() map[string][]byte {
	long := strings.Repeat("x", 120)
	return map[string][]byte{
		"no HTTP":              []byte(leak + " is not HTTP\r\n\r\n"),
		"no version":           []byte("HTTP/" + leak + " 200 OK\r\n\r\n"),
		"no status":            []byte("HTTP/1.1 " + leak + "\r\n\r\n"),
		"no header":            []byte("HTTP/1.1 200 OK\r\n" + leak + "\r\n\r\n"),
		"header name":          []byte("HTTP/1.1 200 OK\r\n" + leak + " x: y\r\n\r\n"),
		"header value":         []byte("HTTP/1.1 200 OK\r\nX: " + leak + "\x01\r\n\r\n"),
		"length":               []byte("HTTP/1.1 200 OK\r\nContent-Length: " + leak + "\r\n\r\n"),
		"two lengths":          []byte("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: " + leak + "\r\n\r\n"),
		"transfer encoding":    []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: " + leak + "\r\n\r\n"),
		"chunk":                []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + leak + "\r\n"),
		"trailer":              []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + leak + "\r\n\r\n"),
		"interim answer":       []byte("HTTP/1.1 103 " + leak + "\r\nX: " + leak + "\r\n\r\n" + leak),
		"switching protocols":  []byte("HTTP/1.1 101 " + leak + "\r\nUpgrade: " + leak + "\r\n\r\n" + leak),
		"cut":                  []byte("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + leak),
		"content encoding":     ok(leak, "Content-Encoding: "+leak),
		"no gzip":              ok(leak+leak+leak, "Content-Encoding: gzip"),
		"text":                 ok(leak),
		"HTML":                 ok("<html>" + leak),
		"JSON":                 ok(`{"` + leak + `":"` + leak + `"}`),
		"JSON string":          ok(`"` + leak + `"`),
		"broken JSON":          ok(`{"version":` + leak),
		"in the version":       ok(`{"version":"` + leak + `"}`),
		"in the algorithm":     ok(`{"version":"1.0","algorithm":"` + leak + `"}`),
		"in the nonce":         ok(`{"version":"1.0","algorithm":"hybrid-aes256-rsa4096","encrypted_payload":{"nonce":"` + leak + `"}}`),
		"in a repeated name":   ok(`{"version":"1.0","version":"` + leak + `"}`),
		"in PEM":               ok("-----BEGIN " + leak + "-----\nAAAA\n-----END " + leak + "-----\n"),
		"in a PEM header":      ok("-----BEGIN PUBLIC KEY-----\n" + leak + ": " + leak + "\n\nAAAA\n-----END PUBLIC KEY-----\n"),
		"in a private key":     ok("-----BEGIN PRIVATE KEY-----\n" + leak + "\n-----END PRIVATE KEY-----\n"),
		"status text":          status("500 "+leak, "", "X: "+leak),
		"error page":           status("502 Bad Gateway", "<html>"+leak, "Content-Type: "+leak),
		"broken error":         status("400 Bad Request", `{"detail":"`+leak),
		"beyond the detail":    status("400 Bad Request", `{"detail":"`+long+leak+`"}`),
		"beyond the code":      status("400 Bad Request", `{"error":{"message":"m","code":"`+long+leak+`"}}`),
		"member of no meaning": status("400 Bad Request", `{"`+leak+`":"`+leak+`","detail":{"`+leak+`":1}}`),
		"retry after":          status("429 Too Many Requests", "", "Retry-After: "+leak),
		"redirect":             status("302 Found", leak+strings.Repeat("<", 3), "Location: https://"+leak+".example/"+leak),
		"redirect to nowhere":  status("307 Temporary Redirect", "", "Location: http://["+leak),
	}
}

// A peer's raw words stay out of errors and logs, whatever it answers to a chat or to the key
// fetch.
func TestPeersWordsDoNotLeak(t *testing.T) {
	keys := storedKeys(t, "rsa-2048")
	_, log := startLogbook(t)
	for name, answer := range rawAnswers() {
		if name == "redirect" { // plain text is a detail
			answer = status("302 Found", "", "Location: https://"+leak+".example/"+leak)
		}
		for _, path := range []string{hybrid.PathCompletion, hybrid.PathPublicKey} {
			t.Run(name+path, func(t *testing.T) {
				base := rawServer(t, func(r *http.Request) []byte {
					if r.URL.Path == path {
						return answer
					}
					return ok(string(testkit.PublicPEM(t, "rsa-2048")))
				})
				client := startClient(t, base, func(c *sealedchat.Config) { c.Keys, c.Logger = keys, log })
				resp, err := client.Chat(testkit.Within(t, 20*time.Second), ask(leak))
				mustNotLeak(t, err)
				if resp != nil {
					t.Error("an answer came with the error")
				}
			})
		}
	}
}

// What was opened and found wrong stays inside.
func TestOpenedAnswersDoNotLeak(t *testing.T) {
	const good = `{"id":"1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}`
	keys := storedKeys(t, "rsa-2048")
	_, log := startLogbook(t)
	text := `"` + leak + `"`
	object := `{"` + leak + `":"` + leak + `"}`
	for name, plaintext := range map[string]string{
		"text": leak, "JSON string": text, "array": "[" + text + "]", "object": object,
		"cut": good[:40] + leak, "trailing": good + leak, "bad UTF-8": good + "\xff" + leak,
		"object name":  with(good, `"chat.completion"`, `"error","x":`+text),
		"out of range": with(good, `"index":0`, `"index":1e99,"x":`+text),
		"choices":      with(good, `"choices":[`, `"choices":`+text+`,"x":[`),
		"choice":       with(good, `"choices":[`, `"choices":[`+text+`,`), "message": with(good, `"message":{`, `"message":`+text+`,"x":{`),
		"content": with(good, `"hi"`, object), "part": with(good, `"hi"`, `[`+text+`]`),
		"part's type": with(good, `"hi"`, `[{"type":`+object+`}]`), "part's text": with(good, `"hi"`, `[{"type":"text","text":`+object+`}]`),
		"tool calls": with(good, `"hi"`, `null,"tool_calls":`+text), "arguments": with(good, `"hi"`, `null,"tool_calls":[{"id":"1","function":{"name":"f","arguments":[`+object+`]}}]`),
		"function": with(good, `"hi"`, `null,"tool_calls":[{"function":`+text+`}]`), "a call": with(good, `"hi"`, `null,"tool_calls":[`+text+`]`),
		"a function's name":        with(good, `"hi"`, `null,"tool_calls":[{"function":{"name":`+object+`}}]`),
		"an image":                 with(good, `"hi"`, `[{"type":"image_url","image_url":`+text+`}]`),
		"an image's URL":           with(good, `"hi"`, `[{"type":"image_url","image_url":{"url":`+object+`}}]`),
		"other request":            with(good, `"created"`, `"_metadata":{"payload_id":"`+testkit.UUID()+`","x":`+text+`},"created"`),
		"lower tier":               with(good, `"created"`, `"_metadata":{"security_tier":`+text+`},"created"`),
		"error of another request": `{"error":{"message":` + text + `},"_metadata":{"payload_id":"` + testkit.UUID() + `"}}`,
		"error":                    `{"error":{"message":` + text + `,"code":` + text + `}}`,
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == hybrid.PathPublicKey {
					_, _ = w.Write(testkit.PublicPEM(t, "rsa-2048"))
					return
				}
				pemText, _ := url.PathUnescape(r.Header.Get(hybrid.HeaderPublicKey))
				key, err := sealedchat.ParsePublicKey([]byte(pemText))
				if err != nil {
					t.Error(err)
					return
				}
				e, err := sealTo(key, []byte(plaintext))
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = w.Write(envelope.Append(nil, e))
			}))
			t.Cleanup(srv.Close)
			client := startClient(t, srv.URL, func(c *sealedchat.Config) { c.Keys, c.Logger, c.Tier = keys, log, sealedchat.TierHigh })
			resp, err := client.Chat(testkit.Within(t, 20*time.Second), ask(leak))
			if name == "error" { // its words are content: Sealed has them, and no text
				e, ok := errors.AsType[*sealedchat.APIError](err)
				if !ok || resp != nil {
					t.Fatalf("error %v", err)
				}
				mustNotLeak(t, err)
				if code, detail := e.Sealed(); detail != leak || code != leak {
					t.Errorf("sealed were %q, %q", code, detail)
				}
				return
			}
			mustNotLeak(t, err)
			if resp != nil || !(errors.Is(err, sealedchat.ErrResponseSchema) || errors.Is(err, sealedchat.ErrReplay) || errors.Is(err, sealedchat.ErrTierDowngrade)) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// with is text with its one old replaced by new.
func with(text, old, new string) string {
	if strings.Count(text, old) != 1 {
		panic("cannot replace " + old)
	}
	return strings.Replace(text, old, new, 1)
}

// leakyMarshaler is a value whose marshalling fails with its content.
type leakyMarshaler struct{}

func (leakyMarshaler) MarshalJSON() ([]byte, error) { return nil, errors.New("cannot marshal " + leak) }

// What a caller gets wrong is not repeated to the caller's log.
func TestCallersMistakesDoNotLeak(t *testing.T) {
	client := startClient(t, "http://127.0.0.1:1", nil)
	raw := func(text string) func() error {
		body := secret(t, text)
		return func() error { _, err := client.Complete(testkit.Within(t, 10*time.Second), body); return err }
	}
	chat := func(change func(*sealedchat.ChatRequest)) func() error {
		r := ask(leak)
		change(r)
		return func() error { _, err := client.Chat(testkit.Within(t, 10*time.Second), r); return err }
	}
	config := func(change func(*sealedchat.Config)) func() error {
		return func() error {
			c := sealedchat.Config{Trust: sealedchat.TrustHTTPS()}
			change(&c)
			_, err := sealedchat.NewSecureCompletionClient(c)
			return err
		}
	}
	badKey := secret(t, "sk-"+leak+"\r\nX-Evil: 1")
	for name, fail := range map[string]func() error{
		"no JSON":           raw(leak),
		"string":            raw(`"` + leak + `"`),
		"cut":               raw(`{"model":"` + leak),
		"bad escape":        raw(`{"` + leak + `":"\u` + leak + `"}`),
		"bad UTF-8":         raw(`{"model":"` + leak + "\xff\"}"),
		"trailing":          raw(`{"model":"m"}` + leak),
		"API key inside":    raw(`{"api_key":"` + leak + `"}`),
		"no role":           chat(func(r *sealedchat.ChatRequest) { r.Messages[0].Role = "" }),
		"content and parts": chat(func(r *sealedchat.ChatRequest) { r.Messages[0].Parts = []sealedchat.Part{sealedchat.TextPart(leak)} }),
		"no model":          chat(func(r *sealedchat.ChatRequest) { r.Model = "" }),
		"channel":           chat(func(r *sealedchat.ChatRequest) { r.Extra = map[string]any{"x": []any{leak, make(chan int)}} }),
		"marshaler":         chat(func(r *sealedchat.ChatRequest) { r.Extra = map[string]any{"x": leakyMarshaler{}} }),
		"tool choice":       chat(func(r *sealedchat.ChatRequest) { r.ToolChoice = leakyMarshaler{} }),
		"raw JSON":          chat(func(r *sealedchat.ChatRequest) { r.Extra = map[string]any{"x": json.RawMessage(leak)} }),
		"schema": chat(func(r *sealedchat.ChatRequest) {
			r.Tools = []sealedchat.Tool{sealedchat.FunctionTool("f", "", json.RawMessage(`{"x":`+leak))}
		}),
		"message's extra": chat(func(r *sealedchat.ChatRequest) {
			r.Messages[0].Extra = map[string]json.RawMessage{"x": json.RawMessage(leak)}
		}),
		"known name":         chat(func(r *sealedchat.ChatRequest) { r.Extra = map[string]any{"model": leak} }),
		"API key":            config(func(c *sealedchat.Config) { c.APIKey = badKey }),
		"password in URL":    config(func(c *sealedchat.Config) { c.BaseURL = "https://user:" + leak + "@example.com" }),
		"password, no URL":   config(func(c *sealedchat.Config) { c.BaseURL = "https://user:" + leak + "@exa mple.com" }),
		"password, http":     config(func(c *sealedchat.Config) { c.BaseURL = "http://user:" + leak + "@example.com" }),
		"token in query":     config(func(c *sealedchat.Config) { c.BaseURL = "https://example.com/?token=" + leak }),
		"token in fragment":  config(func(c *sealedchat.Config) { c.BaseURL = "https://example.com/#" + leak }),
		"control in URL":     config(func(c *sealedchat.Config) { c.BaseURL = "https://example.com/\x7f" + leak }),
		"port":               config(func(c *sealedchat.Config) { c.BaseURL = "https://example.com:" + leak }),
		"API key for a call": func() error { _, err := client.Chat(t.Context(), ask(leak), sealedchat.WithAPIKey(badKey)); return err },
		"gateway's list":     func() error { _, err := sealedchat.AuthenticateKeys(badKey); return err },
		"upstream's key": func() error {
			_, err := sealedchat.NewGateway(sealedchat.GatewayConfig{Upstream: "https://x.example", AllowUnauthenticated: true, UpstreamKey: badKey})
			return err
		},
		"unreachable": chat(func(*sealedchat.ChatRequest) {}),
	} {
		t.Run(name, func(t *testing.T) { mustNotLeak(t, fail()) })
	}
}

// leakyPanic panics with content.
type leakyPanic struct{}

func (leakyPanic) RoundTrip(*http.Request) (*http.Response, error) { panic(leak) }

// The gateway's upstream speaks in the clear: none of it gets into the log, or into an error that
// is not sealed.
func TestGatewayDoesNotLeak(t *testing.T) {
	keys := storedKeys(t, "rsa-2048")
	_, log := startLogbook(t)
	run := func(name string, wantOK bool, upstream string, change func(*sealedchat.GatewayConfig)) {
		t.Run(name, func(t *testing.T) {
			c := sealedchat.GatewayConfig{Upstream: upstream, AllowUnauthenticated: true, Keys: keys, Logger: log}
			if change != nil {
				change(&c)
			}
			srv := httptest.NewServer(newGateway(t, c))
			t.Cleanup(srv.Close)
			client := startClient(t, srv.URL, func(c *sealedchat.Config) { c.Keys, c.Logger = keys, log })
			resp, err := client.Chat(testkit.Within(t, 20*time.Second), ask(leak))
			if wantOK {
				if err != nil || !strings.Contains(resp.Text(), leak) {
					t.Errorf("error %v", err)
				}
				return
			}
			mustNotLeak(t, err)
		})
	}
	for name, answer := range rawAnswers() {
		run(name, false, rawServer(t, func(*http.Request) []byte { return answer }), nil)
	}
	for _, code := range []int{400, 401, 403, 404, 413, 422, 429, 500, 503, 504} {
		detail := status(fmt.Sprint(code, " Status"), `{"error":{"message":"you said `+leak+`","code":"`+leak+`"},"detail":"`+leak+`"}`)
		run(fmt.Sprint("status ", code), false, rawServer(t, func(*http.Request) []byte { return detail }), nil)
	}
	good := httptest.NewServer(parrot("!"))
	t.Cleanup(good.Close)
	run("good", true, good.URL, nil)
	run("panic", false, good.URL, func(c *sealedchat.GatewayConfig) { c.UpstreamTransport = leakyPanic{} })
	run("unauthenticated", false, good.URL, func(c *sealedchat.GatewayConfig) {
		c.Authenticate = func(*http.Request) (string, error) { return leak, errors.New(leak) }
	})
	run("replay cache", false, good.URL, func(c *sealedchat.GatewayConfig) { c.Replay = brokenCache{} })
}

type brokenCache struct{}

func (brokenCache) Claim(context.Context, [32]byte, [32]byte, time.Time) (bool, error) {
	return false, errors.New("cache is down")
}
func (brokenCache) Release(context.Context, [32]byte) error { return nil }

// Whole objects can be printed, too.
func TestObjectsDoNotLeak(t *testing.T) { synctest.Test(t, testObjectsDoNotLeak) }

func testObjectsDoNotLeak(t *testing.T) {
	key, upstreamKey := secret(t, "sk-"+leak), secret(t, "sk-up-"+leak)
	private := storedKey(t, "rsa-2048")
	keys := keysAround(t, private)
	authenticate, err := sealedchat.AuthenticateKeys(key)
	if err != nil {
		t.Fatal(err)
	}
	c := sealedchat.GatewayConfig{Upstream: "https://example.com", Authenticate: authenticate, UpstreamKey: upstreamKey, Keys: keys}
	gateway, err := sealedchat.NewGateway(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gateway.Close() })
	var config sealedchat.Config
	client := startClient(t, "http://127.0.0.1:1", func(c *sealedchat.Config) {
		c.APIKey, c.Keys = key, keys
		config = *c
	})
	synctest.Wait() // the key store has done what it does in the background, and no number changes
	numbers := []string{fmt.Sprint(private.D), fmt.Sprintf("%x", private.D), fmt.Sprint(private.Primes[0]), fmt.Sprintf("%x", private.Primes[0])}
	for name, v := range map[string]any{
		"client": client, "gateway": gateway, "config": config, "gateway config": c, "key store": keys, "secret": key,
		"call option": sealedchat.WithAPIKey(key), "public key": publicOf(t, "rsa-2048"), "response": &sealedchat.Response{Body: key},
	} {
		out := fmt.Sprintf("%v|%+v|%#v|%s|%q|%x|%d", v, v, v, v, v, v, v)
		if b, err := json.Marshal(v); err == nil {
			out += string(b)
		}
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "v", v)
		out += log.String()
		if testkit.Leaks(out) {
			t.Errorf("%s: the marker is in %.300q", name, out)
		}
		for _, n := range numbers {
			if strings.Contains(out, n) {
				t.Errorf("%s: a private number is in %.300q", name, out)
			}
		}
	}
}
