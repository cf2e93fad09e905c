// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// spiedBody remembers the memory that it was read into.
type spiedBody struct {
	io.Reader
	find string
	seen [][]byte
	had  bool
}

func (b *spiedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.seen = append(b.seen, p[:n:n])
	b.had = b.had || bytes.Contains(p[:n], []byte(b.find))
	return n, err
}

func (b *spiedBody) Close() error { return nil }

// Nothing of an upstream's answer stays in the gateway's buffers, whatever becomes of the answer:
// it may quote the prompt.
func TestGatewayWipesAnswers(t *testing.T) {
	const marker = "marker-1234567890"
	completion := func(text string) io.Reader {
		return strings.NewReader(strings.Replace(testkit.FineAnswer, `"t"`, `"`+text+`"`, 1))
	}
	for name, c := range map[string]struct {
		status int
		body   io.Reader
	}{
		"small":            {200, completion(marker)},
		"3 MB":             {200, completion(marker + strings.Repeat(" and so on", 300_000))},
		"not a completion": {200, strings.NewReader(`{"object":"list","words":"` + marker + `"}`)},
		"not JSON":         {200, strings.NewReader(marker)},
		"cut": {
			200,
			io.MultiReader(
				strings.NewReader(`{"x":"`+marker),
				iotest.ErrReader(errors.New("the upstream breaks off")),
			),
		},
		"400": {400, strings.NewReader(`{"error":{"message":"` + marker + `"}}`)},
	} {
		spy := &spiedBody{Reader: c.body, find: marker}
		g := startGateway(t, testkit.AnswerText("x"), func(g *sealedchat.GatewayConfig) {
			g.Upstream, g.Keys = "https://upstream.test/v1", storedKeys(t, "rsa-2048")
			g.UpstreamTransport = testkit.RoundTrip(func(req *http.Request) (*http.Response,
				error) {
				_, _ = io.Copy(io.Discard, req.Body)
				_ = req.Body.Close()
				return &http.Response{
					StatusCode:    c.status,
					Header:        http.Header{},
					ContentLength: -1,
					Body:          spy,
					Request:       req,
				}, nil
			})
		})
		client := startClient(
			t,
			"https://gateway.test",
			func(c *sealedchat.Config) { c.Transport = fakes.Direct(g) },
		)
		_, err := client.Chat(t.Context(), ask("q"))
		if good := c.status == 200 && (name == "small" || name == "3 MB"); (err == nil) != good {
			t.Errorf("%s: %v", name, err)
		}
		if !spy.had {
			t.Errorf("%s: it was never read", name)
		}
		for _, p := range spy.seen {
			if bytes.Contains(p, []byte(marker)) {
				t.Errorf("%s: a buffer of %d bytes still has it", name, len(p))
			}
		}
	}
}
