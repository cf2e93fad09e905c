// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func TestGatewayConfigErrors(t *testing.T) {
	destroyed := secret(t, "x")
	destroyed.Destroy()
	for _, c := range []struct {
		field  string
		change func(*sealedchat.GatewayConfig)
	}{
		{
			"GatewayConfig.Authenticate",
			func(c *sealedchat.GatewayConfig) { c.AllowUnauthenticated = false },
		},
		{"GatewayConfig.Upstream", func(c *sealedchat.GatewayConfig) { c.Upstream = "" }},
		{"GatewayConfig.Upstream", func(c *sealedchat.GatewayConfig) { c.Upstream = "ftp://h/v1" }},
		{
			"GatewayConfig.Upstream",
			func(c *sealedchat.GatewayConfig) { c.Upstream = "https://u:marker@h/v1" },
		},
		{
			"GatewayConfig.Upstream",
			func(c *sealedchat.GatewayConfig) { c.Upstream = "https://h/v1?key=marker" },
		},
		{
			"GatewayConfig.UpstreamKey",
			func(c *sealedchat.GatewayConfig) { c.UpstreamKey = secret(t, "a\nmarker") },
		},
		{"GatewayConfig.UpstreamKey", func(c *sealedchat.GatewayConfig) {
			c.UpstreamKey = destroyed
		}},
		{
			"GatewayConfig.UpstreamTransport",
			func(c *sealedchat.GatewayConfig) { c.Upstream = "http://name/v1" },
		},
		{"GatewayConfig.Tier", func(c *sealedchat.GatewayConfig) { c.Tier = "ultra" }},
		{"GatewayConfig.MaxRequestBytes", func(c *sealedchat.GatewayConfig) {
			c.MaxRequestBytes = -1
		}},
		{
			"GatewayConfig.MaxRequestBytes",
			func(c *sealedchat.GatewayConfig) { c.MaxRequestBytes = 1 << 40 },
		},
		{"GatewayConfig.MaxResponseBytes", func(c *sealedchat.GatewayConfig) {
			c.MaxResponseBytes = -1
		}},
		{"GatewayConfig.MaxConcurrent", func(c *sealedchat.GatewayConfig) { c.MaxConcurrent = -1 }},
		{"GatewayConfig.ReplayWindow", func(c *sealedchat.GatewayConfig) { c.ReplayWindow = -1 }},
		{"GatewayConfig.Timeout", func(c *sealedchat.GatewayConfig) { c.Timeout = -1 }},
		{"GatewayConfig.BodyTimeout", func(c *sealedchat.GatewayConfig) { c.BodyTimeout = -1 }},
	} {
		config := sealedchat.GatewayConfig{
			Upstream:             "https://upstream.test/v1",
			UpstreamTransport:    testkit.NeverUsed(t),
			AllowUnauthenticated: true,
		}
		c.change(&config)
		g, err := sealedchat.NewGateway(config)
		e, ok := errors.AsType[*sealedchat.ConfigError](err)
		if g != nil || !ok || e.Field != c.field || strings.Contains(err.Error(), "marker") {
			t.Errorf("%s: got %v, %v", c.field, g, err)
		}
	}
	for name, c := range map[string]struct {
		keys []*sealedchat.Secret
		says string
	}{
		"none":      {nil, "AuthenticateKeys: no keys; make them with NewSecret"},
		"nil":       {[]*sealedchat.Secret{nil}, "AuthenticateKeys, key 1: "},
		"late nil":  {[]*sealedchat.Secret{secret(t, "k"), nil}, "is nil; make it with NewSecret"},
		"empty":     {[]*sealedchat.Secret{secret(t, "")}, "AuthenticateKeys, key 1: "},
		"space":     {[]*sealedchat.Secret{secret(t, "a b")}, "AuthenticateKeys, key 1: "},
		"destroyed": {[]*sealedchat.Secret{secret(t, "k"), destroyed}, "AuthenticateKeys, key 2: "},
	} {
		if _, err := sealedchat.AuthenticateKeys(c.keys...); !strings.Contains(fmt.Sprint(err),
			c.says) {
			t.Errorf("AuthenticateKeys with %s: %v", name, err)
		} else if _, ok := errors.AsType[*sealedchat.ConfigError](err); !ok {
			t.Errorf("AuthenticateKeys with %s: %v", name, err)
		}
	}
}

func TestGatewayOHTTPConfig(t *testing.T) {
	for name, o := range map[string]sealedchat.GatewayOHTTP{
		"a path alone":     {Allow: []string{"/v1/models"}},
		"a query":          {Allow: []string{"GET /v1/models?x"}},
		"not absolute":     {Allow: []string{"GET v1/models"}},
		"no method":        {Allow: []string{" /v1/models"}},
		"a pattern":        {Allow: []string{"GET /v1/*"}},
		"a negative date":  {DateWindow: -1},
		"a long date":      {DateWindow: 25 * time.Hour},
		"an odd pad":       {Padding: 1000},
		"a negative pad":   {Padding: -1},
		"a large pad":      {Padding: 1 << 15},
		"a negative burst": {StrangerBurst: -1},
		"a large rate":     {StrangerRate: 1e9},
	} {
		_, err := sealedchat.NewGateway(
			sealedchat.GatewayConfig{Upstream: "https://a.test", AllowUnauthenticated: true,
				OHTTP: o},
		)
		if c, ok := errors.AsType[*sealedchat.ConfigError](err); !ok ||
			!strings.HasPrefix(c.Field, "GatewayConfig.OHTTP.") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestGatewayProtocols(t *testing.T) {
	paths := []string{ohttp.Path, hybrid.PathPublicKey, hybrid.PathCompletion}
	for name, c := range map[string]struct {
		protocols []sealedchat.Protocol
		served    []bool
	}{
		"both": {nil, []bool{true, true, true}},
		"listed": {
			[]sealedchat.Protocol{sealedchat.ProtocolOHTTP, sealedchat.ProtocolEnvelope},
			[]bool{true, true, true},
		},
		"envelope": {[]sealedchat.Protocol{sealedchat.ProtocolEnvelope}, []bool{false, true, true}},
		"ohttp":    {[]sealedchat.Protocol{sealedchat.ProtocolOHTTP}, []bool{true, false, false}},
		"none":     {[]sealedchat.Protocol{}, []bool{false, false, false}},
	} {
		r := newRig(t, func(g *sealedchat.GatewayConfig) { g.Protocols = c.protocols })
		for i, path := range paths {
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				if w := r.Do(httptest.NewRequest(method, path,
					nil)); (w.Code != 404) != c.served[i] {
					t.Errorf("%s: %s %s: %d", name, method, path, w.Code)
				}
			}
		}
		if w := r.Do(httptest.NewRequest(http.MethodGet, "/healthz", nil)); w.Code != 200 {
			t.Errorf("%s: /healthz: %d", name, w.Code)
		}
	}
	for _, bad := range []sealedchat.Protocol{"", "9", "OHTTP", "envelope,ohttp"} {
		_, err := sealedchat.NewGateway(sealedchat.GatewayConfig{
			Upstream: "https://a.test", AllowUnauthenticated: true,
			Protocols: []sealedchat.Protocol{sealedchat.ProtocolOHTTP, bad},
		})
		if c, ok := errors.AsType[*sealedchat.ConfigError](err); !ok ||
			c.Field != "GatewayConfig.Protocols" {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
