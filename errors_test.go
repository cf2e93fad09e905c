// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

var statusSentinels = []error{
	ErrInvalidRequest, ErrAuthentication, ErrPermission, ErrNotFound, ErrRateLimited, ErrServer, ErrUnavailable,
}

func TestSentinelOfEveryStatus(t *testing.T) {
	named := map[int]error{
		401: ErrAuthentication, 403: ErrPermission, 404: ErrNotFound, 429: ErrRateLimited, 503: ErrUnavailable,
	}
	for status := 100; status <= 599; status++ {
		want := named[status]
		switch {
		case want != nil:
		case status/100 == 4:
			want = ErrInvalidRequest
		default:
			want = ErrServer
		}
		err := fmt.Errorf("wrapped: %w", &APIError{StatusCode: status})
		for _, sentinel := range statusSentinels {
			if errors.Is(err, sentinel) != (sentinel == want) {
				t.Errorf("status %d: Is(%v) = %v", status, sentinel, errors.Is(err, sentinel))
			}
		}
		for _, other := range []error{ErrConnection, ErrClosed, ErrReplay, ErrEnvelope, nil} {
			if errors.Is(err, other) {
				t.Errorf("status %d is %v", status, other)
			}
		}
		if e, ok := errors.AsType[*APIError](err); !ok || e.StatusCode != status {
			t.Errorf("status %d: As gives %v", status, e)
		}
		if text := err.Error(); !strings.Contains(text, strconv.Itoa(status)) {
			t.Errorf("status %d is not in %q", status, text)
		}
	}
}

func TestAPIErrorText(t *testing.T) {
	for _, c := range []struct {
		err  APIError
		want string
	}{
		{APIError{StatusCode: 401}, "sealedchat: the server answered 401 Unauthorized"},
		{APIError{StatusCode: 299}, "sealedchat: the server answered 299"},
		{APIError{StatusCode: 302}, "sealedchat: the server answered 302 Found (redirects are not followed)"},
		{*newSealedError(200, 0, "c", "d"), "sealedchat: the server answered 200 with a sealed error"},
		{*newSealedError(200, 0, "", ""), "sealedchat: the server answered 200 with a sealed error"},
		{*newSealedError(400, 0, "c", "d"), "sealedchat: the server answered 400 Bad Request with a sealed error"},
		{APIError{StatusCode: 400, Code: "c", Detail: `say "hi"`}, `sealedchat: the server answered 400 Bad Request, code "c", detail "say \"hi\""`},
		// Somebody may fill the fields with anything: quoting holds on its own.
		{APIError{StatusCode: 500, Detail: "a\nb\x1b[31m\xff"}, `sealedchat: the server answered 500 Internal Server Error, detail "a\nb\x1b[31m\xff"`},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}

// Of an error in the clear, or one that a program made, nothing is sealed.
func TestSealedOfOthers(t *testing.T) {
	for _, e := range []*APIError{{}, {StatusCode: 200}, {StatusCode: 400, Code: "c", Detail: "d"},
		newAPIError(429, nil, []byte(`{"detail":"slow"}`), time.Now())} {
		if code, detail := e.Sealed(); code != "" || detail != "" {
			t.Errorf("%v: %q, %q", e, code, detail)
		}
	}
}

func TestErrorDetail(t *testing.T) {
	long := strings.Repeat("x", 300)
	deep := strings.Repeat(`[`, 50) + `"deep"` + strings.Repeat(`]`, 50)
	for _, c := range []struct{ body, code, detail string }{
		{``, "", ""},
		{" \r\n", "", ""},
		{`{"detail":"plain words"}`, "", "plain words"},
		{"\xef\xbb\xbf" + `{"detail":"after a BOM"}`, "", "after a BOM"},
		{`{"detail":"a\nb\u0000c\u001b[31md\u202e"}`, "", "a b c [31md"},
		{`{"detail":["one","two"]}`, "", "one; two"},
		{`{"detail":[{"loc":["body","model"],"msg":"field required","type":"missing"},{"msg":"again"}]}`, "", "field required; again"},
		{`{"detail":{"message":"m","code":"inner"}}`, "", "m"},
		{`{"detail":{"error":"e"}}`, "", "e"},
		{`{"detail":{"loc":"nothing to say"}}`, "", ""},
		{`{"detail":null,"message":"next"}`, "", "next"},
		{`{"detail":"","error":"next"}`, "", "next"},
		{`{"detail":42}`, "", "42"},
		{`{"detail":true}`, "", ""},
		{`{"error":{"message":"m","type":"t","param":null,"code":"c"}}`, "c", "m"},
		{`{"error":{"message":"m","type":"t","code":null}}`, "t", "m"},
		{`{"error":{"message":"m","code":500}}`, "500", "m"},
		{`{"error":{"message":"m","code":{"no":"scalar"}}}`, "", "m"},
		{`{"error":"words","code":"c"}`, "c", "words"},
		{`{"error":{"code":"a\nb"}}`, "a b", ""},
		{`{"message":"m"}`, "", "m"},
		{`{"object":"error","message":"vllm","type":"BadRequestError","code":400}`, "400", "vllm"},
		{`{"Detail":"names are exact"}`, "", ""},
		{`{"unknown":"member"}`, "", ""},
		{`"a JSON string"`, "", "a JSON string"},
		{`["a","b","c","d","e"]`, "", "a; b; c; d"},
		{`[]`, "", ""},
		{`12`, "", "12"},
		{`null`, "", ""},
		{`plain text, not JSON`, "", "plain text, not JSON"},
		{"upstream\r\nconnect\terror \xff\xfe", "", "upstream connect error"},
		{`<html><body>502 Bad Gateway</body></html>`, "", ""},
		{"\n <?xml version=\"1.0\"?>", "", ""},
		{`{"detail":"cut`, "", ""},
		{`{"detail":"x",}`, "", ""},
		{`["cut`, "", ""},
		{`"cut`, "", ""},
		{`{"detail":"` + long + `"}`, "", long[:100]},
		{`{"error":{"code":"` + long + `"}}`, long[:100], ""},
		{`{"detail":"` + strings.Repeat("é", 150) + `"}`, "", strings.Repeat("é", 100)},
		{`{"detail":` + deep + `}`, "", "deep"},
		{long, "", long[:100]},
	} {
		code, detail := errorDetail([]byte(c.body))
		if c.body == `{"detail":`+deep+`}` && detail == "" {
			continue // how deep words are looked for is nobody's business
		}
		if code != c.code || detail != c.detail {
			t.Errorf("%.80s\n got %q, %q\nwant %q, %q", c.body, code, detail, c.code, c.detail)
		}
	}
}

// An error may come sealed, and then be as large as an answer: looking for its words must not take
// long.
func TestErrorDetailIsCheap(t *testing.T) {
	const depth = 9000
	words := strings.Repeat("x", 4<<20)
	body := `{"error":` + strings.Repeat("[", depth) + `"` + words + `"` + strings.Repeat(`,"y"]`, depth) + `}`
	start := testkit.CPUTime()
	err := checkCompletion([]byte(body), newUUID(), "")
	e, ok := errors.AsType[*APIError](err)
	if !ok || e.StatusCode != 200 {
		t.Fatalf("got %.200v", err)
	}
	if _, detail := e.Sealed(); utf8.RuneCountInString(detail) > maxDetail {
		t.Errorf("got %.200v", err)
	}
	if d := testkit.CPUTime() - start; d > 2*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestNewAPIError(t *testing.T) {
	h := http.Header{"Retry-After": {"3"}}
	e := newAPIError(429, h, []byte(`{"detail":"slow"}`), time.Now())
	if e.StatusCode != 429 || e.RetryAfter != 3*time.Second || e.Detail != "slow" || !errors.Is(e, ErrRateLimited) {
		t.Errorf("got %+v", e)
	}
}

func TestSanitise(t *testing.T) {
	for _, c := range []struct {
		in   string
		n    int
		want string
	}{
		{"", 5, ""}, {"abc", 0, ""}, {"abc", 2, "ab"}, {"a  b", 9, "a b"}, {"\n\n a \n", 9, "a"}, {"\xff\xfe", 9, ""},
		{"a\x00\x1b\u200b\u202e\u2028b", 9, "a b"}, {"日本語", 2, "日本"}, {"a\u00a0b", 9, "a b"}, {"a\ufeffb\ufffdc", 9, "a b\ufffdc"},
	} {
		if got := fault.Sanitise(c.in, c.n); got != c.want {
			t.Errorf("%q, %d: %q, want %q", c.in, c.n, got, c.want)
		}
	}
}

func FuzzSanitise(f *testing.F) {
	for _, s := range []string{"", "plain", "a\nb", "\xff\xfe\x00", "\u202e\u200b", "é\xc3", strings.Repeat(" a", 80)} {
		f.Add(s, 100)
	}
	f.Fuzz(func(t *testing.T, s string, n int) {
		n %= 300
		got := fault.Sanitise(s, n)
		if !utf8.ValidString(got) || utf8.RuneCountInString(got) > max(n, 0) {
			t.Fatalf("%q, %d: %q", s, n, got)
		}
		for _, r := range got {
			if !unicode.IsPrint(r) {
				t.Fatalf("%q keeps %U", s, r)
			}
		}
		if strings.HasPrefix(got, " ") || strings.Contains(got, "  ") {
			t.Fatalf("%q: %q", s, got)
		}
		if again := fault.Sanitise(got, n); strings.TrimRight(again, " ") != strings.TrimRight(got, " ") {
			t.Fatalf("%q becomes %q", got, again)
		}
	})
}

func FuzzErrorDetail(f *testing.F) {
	for _, s := range []string{`{"detail":"x"}`, `{"error":{"message":"m","code":1e400}}`, `[[["x"]]]`, `<p>`, "text\x00", `{"detail":[{"msg":"m"}]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		before := bytes.Clone(body)
		code, detail := errorDetail(body)
		for _, s := range []string{code, detail} {
			if utf8.RuneCountInString(s) > maxDetail || s != fault.Sanitise(s, maxDetail) && s != fault.Sanitise(s, maxDetail)+" " {
				t.Fatalf("%q gives %q", body, s)
			}
		}
		if !bytes.Equal(body, before) {
			t.Fatal("the body was changed")
		}
		text := (&APIError{StatusCode: 500, Code: code, Detail: detail}).Error()
		if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Fatalf("%q", text)
		}
	})
}

func TestConfigErrorAndServerKeyError(t *testing.T) {
	cause := errors.New("sealedchat: the\ncause")
	var err error = fmt.Errorf("outer: %w", &ConfigError{Field: "Config.X", Err: cause})
	c, ok := errors.AsType[*ConfigError](err)
	if !ok || c.Field != "Config.X" || !errors.Is(err, cause) || c.Error() != "sealedchat: Config.X: the cause" {
		t.Errorf("ConfigError: %v", err)
	}
	for _, e := range []struct {
		err  *ServerKeyError
		want string
	}{
		{&ServerKeyError{Got: "aa"}, "sealedchat: the server's key aa is not trusted; nothing was sent: ask the operator what the gateway's Keys list, by another way than this connection; if it is aa, pin it or call AcceptServerKey with it (a gateway without a key store has new keys at each start)"},
		{&ServerKeyError{Got: "aa", Want: []string{"bb", "cc"}}, "sealedchat: the server's key aa is not trusted, expected bb or cc; nothing was sent: ask the operator what the gateway's Keys list, by another way than this connection; if it is aa, pin it or call AcceptServerKey with it (a gateway without a key store has new keys at each start)"},
		{&ServerKeyError{Got: "aa", Signer: "dd"}, "sealedchat: the server's list of keys, signed by dd, is not trusted; nothing was sent: ask the operator what the gateway's Keys list, by another way than this connection; if it is dd, pin it or call AcceptServerKey with it (a gateway without a key store has new keys at each start)"},
		{&ServerKeyError{Got: "aa", Err: cause}, "sealedchat: the server's key aa is not trusted: the cause"},
	} {
		if e.err.Error() != e.want {
			t.Errorf("got %q, want %q", e.err.Error(), e.want)
		}
		if errors.Is(e.err, cause) != (e.err.Err != nil) || errors.Is(e.err, ErrServer) {
			t.Errorf("%v: Is", e.err)
		}
	}
}

type rawCause struct{ text string }

func (e *rawCause) Error() string { return e.text }

func TestConnectionErrorHidesRawText(t *testing.T) {
	long := strings.Repeat("w", 1000)
	cause := &rawCause{"peer said \x1b[2J\r\nX-Evil: 1\xff\u202e" + long}
	var err error = fmt.Errorf("outer: %w", fault.Connection("POST /x", fmt.Errorf("inner: %w", cause), false))
	if got, ok := errors.AsType[*rawCause](err); !ok || got != cause || !errors.Is(err, cause) || !errors.Is(err, ErrConnection) {
		t.Error("the cause cannot be reached")
	}
	text := err.Error()
	if len(text) > 400 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("raw text: %q", text)
	}
	if !strings.Contains(text, "POST /x") || !strings.HasPrefix(text, "outer: sealedchat: connection failed: ") {
		t.Errorf("got %q", text)
	}
	timeout := fault.Connection("x", fault.ErrAttemptTimeout, false)
	if !errors.Is(timeout, context.DeadlineExceeded) || !errors.Is(timeout, ErrConnection) || errors.Is(timeout, io.EOF) {
		t.Error("a timeout is a deadline that was exceeded")
	}
}

func TestEndedError(t *testing.T) {
	own := errors.New("own cause")
	for _, c := range []struct {
		cause error
		want  []error
	}{
		{nil, []error{context.Canceled}},
		{own, []error{context.Canceled, own}},
		{fmt.Errorf("%w: client", ErrClosed), []error{ErrClosed}},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(c.cause)
		err := fault.Ended(ctx)
		for _, want := range c.want {
			if !errors.Is(err, want) {
				t.Errorf("cause %v: %v is not %v", c.cause, err, want)
			}
		}
		if errors.Is(err, ErrConnection) {
			t.Errorf("%v blames the connection", err)
		}
	}
}

// Every sentinel says which package it comes from, and no two are the same.
func TestSentinelTexts(t *testing.T) {
	all := append(slices.Clone(statusSentinels), ErrConnection, ErrInsecureURL, ErrEnvelope, ErrDecryption, ErrResponseSchema,
		ErrReplay, ErrTierDowngrade, ErrTooLarge, ErrPublicKey, ErrClosed)
	seen := map[string]bool{}
	for _, err := range all {
		if !strings.HasPrefix(err.Error(), "sealedchat: ") || seen[err.Error()] {
			t.Errorf("%q", err)
		}
		seen[err.Error()] = true
	}
}
