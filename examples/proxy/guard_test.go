// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// refusals are requests as a hostile page would have them sent, and others that are not served.
// HOST stands for the address of the proxy.
var refusals = map[string]struct {
	method, path, body string
	headers            []string
	status             int
	code               string
}{
	"a name that was bound anew": {"POST", "/v1/chat/completions", question,
		[]string{"Host", "evil.example:8484"}, 403, "host_not_allowed"},
	"that name, to read": {"GET", "/v1/models", "",
		[]string{"Host", "evil.example"}, 403, "host_not_allowed"},
	"that name, for the state": {"GET", "/sealed", "",
		[]string{"Host", "evil.example"}, 403, "host_not_allowed"},
	"an address of the network": {"GET", "/sealed", "",
		[]string{"Host", "192.168.1.7:8484"}, 403, "host_not_allowed"},
	"a name that begins alike": {"GET", "/sealed", "",
		[]string{"Host", "localhost.evil.example"}, 403, "host_not_allowed"},
	"a name that ends alike": {"GET", "/sealed", "",
		[]string{"Host", "evil-localhost"}, 403, "host_not_allowed"},
	"a name in place of the port": {"GET", "/sealed", "",
		[]string{"Host", "localhost:8484.evil.example"}, 403, "host_not_allowed"},
	"letters in place of the port": {"GET", "/sealed", "",
		[]string{"Host", "127.0.0.1:evil"}, 403, "host_not_allowed"},
	"a name in brackets": {"GET", "/sealed", "",
		[]string{"Host", "[localhost]:8484"}, 403, "host_not_allowed"},
	"a dot at the end": {"GET", "/sealed", "",
		[]string{"Host", "localhost."}, 403, "host_not_allowed"},
	"all addresses of the machine": {"GET", "/sealed", "",
		[]string{"Host", "0.0.0.0:8484"}, 403, "host_not_allowed"},
	"that name, as its own origin": {"POST", "/v1/chat/completions", question,
		[]string{"Host", "evil.example", "Origin", "http://evil.example", "Sec-Fetch-Site",
			"same-origin"}, 403, "host_not_allowed"},
	"a preflight": {"OPTIONS", "/v1/chat/completions", "",
		[]string{"Origin", "https://evil.example", "Access-Control-Request-Method", "POST",
			"Access-Control-Request-Headers", "content-type"}, 403, "cross_origin"},
	"a preflight for a local network": {"OPTIONS", "/v1/models", "",
		[]string{"Origin", "https://evil.example", "Access-Control-Request-Private-Network",
			"true"}, 403, "cross_origin"},
	"OPTIONS by itself": {"OPTIONS", "/sealed", "", nil, 403, "cross_origin"},
	"a script of another site": {"POST", "/v1/chat/completions", question,
		[]string{"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"}, 403,
		"cross_origin"},
	"an old browser": {"POST", "/v1/chat/completions", question,
		[]string{"Origin", "https://evil.example"}, 403, "cross_origin"},
	"a sandboxed frame": {"POST", "/v1/chat/completions", question,
		[]string{"Origin", "null"}, 403, "cross_origin"},
	"a page of another port": {"POST", "/v1/chat/completions", question,
		[]string{"Origin", "http://127.0.0.1:1", "Sec-Fetch-Site", "same-site"}, 403,
		"cross_origin"},
	"another port, without Sec-Fetch": {"POST", "/v1/chat/completions", question,
		[]string{"Origin", "http://127.0.0.1:1"}, 403, "cross_origin"},
	"https in place of http": {"POST", "/v1/chat/completions", question,
		[]string{"Origin", "https://HOST"}, 403, "cross_origin"},
	"an origin with a user": {"POST", "/v1/chat/completions", question,
		[]string{"Origin", "http://x@HOST"}, 403, "cross_origin"},
	"an origin with a path": {"POST", "/v1/chat/completions", question,
		[]string{"Origin", "http://HOST/x"}, 403, "cross_origin"},
	"an origin that is no URL": {"POST", "/v1/chat/completions", question,
		[]string{"Origin", "http://%zz"}, 403, "cross_origin"},
	"an image that reads": {"GET", "/v1/models", "",
		[]string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors"}, 403,
		"cross_origin"},
	"a link of another site": {"GET", "/sealed", "",
		[]string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"}, 403,
		"cross_origin"},
	"a script that reads": {"GET", "/v1/models", "",
		[]string{"Origin", "https://evil.example"}, 403, "cross_origin"},
	"HEAD": {"HEAD", "/v1/models", "", []string{"Sec-Fetch-Site", "cross-site"}, 403, ""},
	"a form": {"POST", "/v1/chat/completions", "a=b",
		[]string{"Content-Type", "application/x-www-form-urlencoded"}, 415,
		"unsupported_media_type"},
	"a form of plain text": {"POST", "/v1/chat/completions", question,
		[]string{"Content-Type", "text/plain"}, 415, "unsupported_media_type"},
	"a form with a file": {"POST", "/v1/audio/transcriptions", "--x--",
		[]string{"Content-Type", "multipart/form-data; boundary=x"}, 415,
		"unsupported_media_type"},
	"no content type": {"POST", "/v1/chat/completions", question,
		[]string{"Content-Type", ""}, 415, "unsupported_media_type"},
	"a content type with two faces": {"POST", "/v1/chat/completions", question,
		[]string{"Content-Type", "text/plain, application/json"}, 415, "unsupported_media_type"},
	"GET with a body": {"GET", "/v1/models", "{}", []string{"Content-Type", "text/plain"}, 415,
		"unsupported_media_type"},
	"POST without one":  {"POST", "/v1/chat/completions", "", nil, 415, "unsupported_media_type"},
	"TRACE":             {"TRACE", "/v1/models", "", nil, 405, "method_not_allowed"},
	"POST to the state": {"POST", "/sealed", "{}", nil, 405, "method_not_allowed"},
}

// No request of a hostile page reaches the server, and no answer tells a browser that it may.
func TestHostilePages(t *testing.T) {
	r := start(t, nil)
	for name, c := range refusals {
		var headers []string
		for _, h := range c.headers {
			headers = append(headers, strings.ReplaceAll(h, "HOST", strings.TrimPrefix(r.url, "http://")))
		}
		a := r.do(c.method, c.path, c.body, headers...)
		if c.code != "" {
			a.wantError(t, name, c.status, c.code)
		} else if a.StatusCode != c.status {
			t.Errorf("%s: %d", name, a.StatusCode)
		}
		wantNoRights(t, name, a.Header)
	}
	s := r.sealed()
	if s.Requests != 0 || s.Client.Requests != 0 {
		t.Errorf("%d requests were carried", s.Client.Requests)
	}
	if s.Refused < int64(len(refusals))-1 { // POST to the state is refused there
		t.Errorf("%d of %d were counted", s.Refused, len(refusals))
	}
}

// raw sends lines as they are, and returns what comes until the proxy closes the connection.
func (r *running) raw(lines ...string) string {
	r.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, strings.Join(lines, "\r\n")+"\r\n\r\n"); err != nil {
		r.t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	text, err := io.ReadAll(c)
	if err != nil {
		r.t.Errorf("%s: %v after %q", lines[0], err, text)
	}
	return string(text)
}

// What http.Client does not send is refused, too.
func TestRawRequests(t *testing.T) {
	r := start(t, nil)
	for name, c := range map[string]struct {
		lines  []string
		status string
	}{
		"OPTIONS *": {[]string{"OPTIONS * HTTP/1.1", "Host: localhost"}, "403"},
		"OPTIONS * of a bound name": {[]string{"OPTIONS * HTTP/1.1", "Host: evil.example"},
			"403"},
		"HTTP/1.0 without a Host": {[]string{"GET /sealed HTTP/1.0"}, "403"},
		"no Host":                 {[]string{"GET /sealed HTTP/1.1"}, "400"},
		"two of them": {[]string{"GET /sealed HTTP/1.1", "Host: localhost",
			"Host: evil.example"}, "400"},
		"an absolute target": {[]string{"GET http://evil.example/sealed HTTP/1.1",
			"Host: localhost"}, "403"},
		"CONNECT":            {[]string{"CONNECT evil.example:443 HTTP/1.1", "Host: localhost"}, "403"},
		"GET *":              {[]string{"GET * HTTP/1.1", "Host: localhost"}, "400"},
		"HTTP/2 without TLS": {[]string{"PRI * HTTP/2.0", "", "SM"}, "403"},
	} {
		head := c.lines[0]
		answer := r.raw(append(c.lines, "Connection: close")...)
		if _, rest, _ := strings.Cut(answer, " "); !strings.HasPrefix(rest, c.status) {
			t.Errorf("%s: %s: %q, want %s", name, head, answer, c.status)
		}
		if strings.Contains(answer, "Access-Control-") {
			t.Errorf("%s: %q", name, answer)
		}
	}
	if s := r.sealed(); s.Client.Requests != 0 {
		t.Errorf("%d requests were carried", s.Client.Requests)
	}
}

// A body that nobody reads, and that does not come, holds no connection: not of a client that the
// proxy serves, and not of one without a token.
func TestUnreadBody(t *testing.T) {
	const token = "a-token-of-some-length"
	r := start(t, map[string]string{tokenVariable: token}, "-protocol", "envelope")
	for name, lines := range map[string][]string{
		"the state":  {"GET /sealed HTTP/1.1", "Authorization: Bearer " + token},
		"the root":   {"GET / HTTP/1.1", "Authorization: Bearer " + token},
		"the models": {"GET /v1/models HTTP/1.1", "Authorization: Bearer " + token},
		"no token":   {"POST /v1/chat/completions HTTP/1.1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			answer := r.raw(append(lines, "Host: localhost", "Content-Type: application/json",
				"Content-Length: 10")...)
			if !strings.HasPrefix(answer, "HTTP/1.1 ") ||
				!strings.Contains(answer, "Connection: close") {
				t.Errorf("%q", answer)
			}
		})
	}
}

// wantNoRights fails the test if an answer gives a browser anything to work with.
func wantNoRights(t *testing.T, name string, h http.Header) {
	t.Helper()
	for header := range h {
		if strings.HasPrefix(header, "Access-Control-") {
			t.Errorf("%s: the answer has %s: %s", name, header, h.Get(header))
		}
	}
	if !strings.Contains(h.Get("Content-Security-Policy"), "default-src 'none'") ||
		h.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%s: the answer has %v", name, h)
	}
}

// Programs of this machine, and the page of the proxy itself, are served.
func TestPermitted(t *testing.T) {
	r := start(t, nil, "-host", "Proxy.Example,fd00::1,fd00:1:2:3:4:5:6:7")
	host := strings.TrimPrefix(r.url, "http://")
	port := host[strings.LastIndex(host, ":"):]
	for name, headers := range map[string][]string{
		"curl":                {},
		"localhost":           {"Host", "localhost" + port},
		"another port":        {"Host", "LOCALHOST:9"}, // that was forwarded
		"IPv6":                {"Host", "[::1]" + port},
		"no port":             {"Host", "[::1]"},
		"a name of -host":     {"Host", "proxy.example"},
		"an address of -host": {"Host", "[fd00::1]:8484"},
		"a long address":      {"Host", "[fd00:1:2:3:4:5:6:7]"},
		"typed into the bar":  {"Sec-Fetch-Site", "none"},
		"its own page":        {"Sec-Fetch-Site", "same-origin", "Origin", r.url},
	} {
		for _, path := range []string{"/sealed", "/v1/models"} {
			a := r.do("GET", path, "", headers...)
			if a.StatusCode != 200 {
				t.Errorf("%s: GET %s: %d %s", name, path, a.StatusCode, a.text)
			}
			wantNoRights(t, name, a.Header)
		}
	}
	a := r.do("POST", "/v1/chat/completions", question, "Content-Type",
		"Application/JSON; charset=utf-8")
	if a.StatusCode != 200 || !strings.Contains(a.text, "Paris") {
		t.Errorf("%d %s", a.StatusCode, a.text)
	}
}

func TestToken(t *testing.T) {
	const token = "a-token-of-some-length"
	for name, start := range map[string]func() *running{
		"a file": func() *running {
			return start(t, nil, "-token", writePrivate(t, token+"\n"))
		},
		"the environment": func() *running {
			return start(t, map[string]string{tokenVariable: token})
		},
	} {
		r := start()
		for _, path := range []string{"/v1/models", "/sealed", "/", "/nothing"} {
			for _, wrong := range []string{"", "Bearer", "Bearer ", "Bearer " + token[1:],
				"Bearer " + token + "x", "Bearer " + strings.ToUpper(token), "Basic " + token,
				token} {
				a := r.do("GET", path, "", "Authorization", wrong)
				a.wantError(t, name+", "+wrong, 401, "invalid_token")
			}
		}
		twice := r.request("GET", "/v1/models", "", "Authorization", "Bearer "+token)
		twice.Header.Add("Authorization", "Bearer x")
		if resp, err := r.client.Do(twice); err != nil || resp.StatusCode != 401 {
			t.Errorf("two headers: %v", err)
		} else {
			resp.Body.Close()
		}
		a := r.do("POST", "/v1/chat/completions", question, "Authorization", "bearer "+token)
		if a.StatusCode != 200 {
			t.Errorf("%s: %d %s", name, a.StatusCode, a.text)
		}
		// a page learns nothing of tokens
		r.do("GET", "/v1/models", "", "Authorization", "Bearer "+token, "Origin",
			"http://evil.example").wantError(t, "page", 403, "cross_origin")
	}
}
