// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// Whatever path is on the list: it is asked of the upstream, and of nobody else.
func TestObliviousUpstreamURL(t *testing.T) {
	for path, want := range map[string]string{
		"/v1":                   "",
		"/v1/":                  "/",
		"/v1/chat/completions":  "/chat/completions",
		"/v1/a%2Fb":             "/a%2Fb",
		"/v1//evil.test/x":      "//evil.test/x",
		"/v1.example/x":         "/v1.example/x",
		"/v1beta/chat":          "/v1beta/chat",
		"/v10/chat":             "/v10/chat",
		"/v1@evil.test/x":       "/v1@evil.test/x",
		"/v1:80/x":              "/v1:80/x",
		"/v1%2Fx":               "/v1%2Fx",
		"/api/chat":             "/api/chat",
		"/v1/models?a=b/../?@c": "/models?a=b/../?@c",
	} {
		for _, base := range []string{
			"https://upstream.test", "https://upstream.test:444/",
			"https://upstream.test/base%2F/v1",
		} {
			allowed, _, _ := strings.Cut(path, "?")
			r := newRig(t, func(c *Config) {
				c.Upstream = base
				c.OHTTP.Allow = []string{"POST " + allowed}
			})
			s := r.Seal(fakes.Inner{Path: path})
			a := s.Open(r.Send(s))
			sent := r.Forwarded()
			if a.Status != 200 || len(sent) != 1 {
				t.Errorf("%s of %s: %+v", path, base, a)
				continue
			}
			if full := strings.TrimSuffix(base, "/") + want; sent[0].URL != full {
				t.Errorf("%s of %s: asked of %s, want %s", path, base, sent[0].URL, full)
			}
		}
	}
}
