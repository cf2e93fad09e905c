// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// The ends of configurations: AES-256-GCM alone, both, AES-128-GCM alone, and neither.
const (
	offers256     = "\x00\x04\x00\x01\x00\x02"
	offersBoth    = "\x00\x08\x00\x01\x00\x02\x00\x01\x00\x01"
	offers128     = "\x00\x04\x00\x01\x00\x01"
	offersNeither = "\x00\x04\x00\x01\x00\x03"
)

// offering is a list of one configuration that offers both AEADs, with another end.
func offering(t testing.TB, list []byte, end string) []byte {
	t.Helper()
	config, ok := bytes.CutSuffix(list[2:], []byte(offersBoth))
	if !ok {
		t.Fatalf("%x", list)
	}
	config = append(bytes.Clone(config), end...)
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(config))), config...)
}

// The client takes AES-256-GCM where it is offered, and says where it had to take the other one.
func TestClientAES128(t *testing.T) {
	g := fakes.NewGateway(t, answerText("x"))
	if _, err := g.Ring.AddAES128(ohttp.XWing); err != nil {
		t.Fatal(err)
	}
	g.Ring.ForgetOthers()
	for _, offer := range []struct {
		end    string
		aes128 int64
		reason string
	}{{offersBoth, 0, ""}, {offers128, 1, "AES-128-GCM"}} {
		g.Set(func() {
			g.List = func(list []byte) []byte { return offering(t, list, offer.end) }
		})
		h := &heard{}
		client := directClient(t, g, func(c *Config) { c.Audit = h.Record })
		if _, err := client.Chat(t.Context(), ask("x")); err != nil {
			t.Fatal(err)
		}
		events := h.mustHear(t, "chat",
			"client_opened server_key_first_seen request_sealed response_opened")
		if e := events[2]; e.Reason != offer.reason {
			t.Errorf("%x: %+v", offer.end, e)
		}
		if n := client.Stats(); n.Attempts != 1 || n.AttemptsAES128 != offer.aes128 {
			t.Errorf("%x: %+v", offer.end, n)
		}
	}
}

// Of a list with nothing that it knows, the client says what stands in it.
func TestClientNamesUnknownSuites(t *testing.T) {
	g := fakes.NewGateway(t, answerText("x"))
	if _, err := g.Ring.AddAES128(ohttp.XWing); err != nil {
		t.Fatal(err)
	}
	g.Ring.ForgetOthers()
	g.Set(func() {
		g.List = func(list []byte) []byte {
			return append(offering(t, list, offersNeither), 0, 10, 9, 0xab, 0xcd, 1, 0, 4, 0, 1, 0,
				2)
		}
	})
	client := directClient(t, g, nil)
	_, err := client.Chat(t.Context(), ask("x"))
	if !errors.Is(err, ErrPublicKey) || !strings.Contains(err.Error(),
		"X-Wing (0x647a) with HKDF-SHA256 (0x0001) and ChaCha20Poly1305 (0x0003), 0xabcd") {
		t.Error(err)
	}
	if _, posts := g.Counts(); posts != 0 {
		t.Error("something was sent")
	}
}

// A gateway offers AES-128-GCM only in configurations that it makes with GatewayOHTTP.AES128.
func TestGatewayAES128(t *testing.T) {
	for _, offer := range []bool{false, true} {
		keys, _ := weakStore(t, nil)
		r := newRig(t, func(c *GatewayConfig) { c.Keys, c.OHTTP.AES128 = keys, offer })
		list := r.Do(httptest.NewRequest("GET", ohttp.Path, nil)).Body.Bytes()
		configs, err := ohttp.ParseConfigs(list)
		if err != nil || len(configs) != 2 {
			t.Fatal(configs, err)
		}
		for _, c := range configs {
			if end := bytes.HasSuffix(c.Encoded(), []byte(offersBoth)); end != offer ||
				bytes.HasSuffix(c.Encoded(), []byte(offers256)) == offer || c.AES128() {
				t.Errorf("%x", c.Encoded()[len(c.Encoded())-10:])
			}
			if !offer {
				continue
			}
			one := ohttp.AppendConfigs(nil, c)
			for _, end := range []string{offersBoth, offers128} {
				sealTo, err := ohttp.ParseConfigs(offering(t, one, end))
				if err != nil {
					t.Fatal(err)
				}
				s := fakes.SealFor(t, sealTo[0], fakes.Inner{}.Encode(t))
				if a := s.Open(r.Send(s)); a.Status != 200 || a.Err != nil {
					t.Errorf("%x: %+v", end, a)
				}
			}
		}
	}
}

// Turning it on leaves configurations that a store has as they are.
func TestGatewayAES128LeavesStoredConfigurations(t *testing.T) {
	keys, _ := weakStore(t, &KeyStoreOptions{Rotation: Rotation{Every: -1}})
	list := func(offer bool) string {
		r := newRig(t, func(c *GatewayConfig) { c.Keys, c.OHTTP.AES128 = keys, offer })
		return r.Do(httptest.NewRequest("GET", ohttp.Path, nil)).Body.String()
	}
	before := list(false)
	if after := list(true); after != before {
		t.Error("another list")
	}
	if err := keys.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := list(true); strings.Count(after, offersBoth) != 2 {
		t.Errorf("%x", after)
	}
}
