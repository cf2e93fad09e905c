// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/gateway"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// Each field of a gateway's event is in the Auditor's event, under the same name, and each type is
// one that is known.
func TestGatewayEvent(t *testing.T) {
	var e gateway.Event
	from := reflect.ValueOf(&e).Elem()
	for i := range from.NumField() {
		switch f := from.Field(i); f.Kind() {
		case reflect.String:
			f.SetString("text of " + from.Type().Field(i).Name)
		case reflect.Int, reflect.Int64:
			f.SetInt(int64(100 + i))
		default:
			t.Fatalf("%s has a type that the test does not know", from.Type().Field(i).Name)
		}
	}
	event := gatewayEvent(e)
	if event.Memory != nil {
		t.Error("an event of a request has Memory")
	}
	to := reflect.ValueOf(event)
	for i := range from.NumField() {
		name := from.Type().Field(i).Name
		got := to.FieldByName(name)
		if !got.IsValid() || fmt.Sprint(got) != fmt.Sprint(from.Field(i)) || got.IsZero() {
			t.Errorf("%s: got %v, want %v", name, got, from.Field(i))
		}
	}
	for _, kind := range []string{
		gateway.GatewayOpened, gateway.GatewayClosed, gateway.RequestOpened, gateway.ResponseSealed,
		gateway.DecryptionRefused, gateway.ReplayRefused, gateway.TierRefused,
		gateway.SchemaRefused, gateway.PanicSurvived,
	} {
		event := gatewayEvent(gateway.Event{Type: kind})
		life := kind == gateway.GatewayOpened || kind == gateway.GatewayClosed
		if !event.Type.valid() || (event.Memory != nil) != life {
			t.Errorf("%q: %+v", kind, event)
		}
	}
}

// Each field of GatewayConfig arrives in the engine's Config, under the same name unless it is one
// of those that change their form.
func TestGatewayConfigArrives(t *testing.T) {
	c := GatewayConfig{
		Authenticate: func(*http.Request) (string, error) {
			return "me", &APIError{StatusCode: 429, RetryAfter: time.Minute}
		},
		UpstreamKey:       secret(t, "upstream-key"),
		UpstreamTransport: testkit.NeverUsed(t),
		Keys:              storedKeys(t, "rsa-2048"),
		Replay:            NewReplayCache(1),
		Audit:             NewSlogAuditor(nil),
		Logger:            slog.New(slog.DiscardHandler),
		Protocols:         []Protocol{ProtocolOHTTP},
		OHTTP: GatewayOHTTP{
			Allow: []string{"GET /v1/models"}, DateWindow: 1, Padding: 2, StrangerRate: 3,
			StrangerBurst: 4,
		},
	}
	from := reflect.ValueOf(&c).Elem()
	for i := range from.NumField() {
		switch f := from.Field(i); f.Kind() {
		case reflect.String:
			f.SetString("text of " + from.Type().Field(i).Name)
		case reflect.Int, reflect.Int64:
			f.SetInt(int64(100 + i))
		case reflect.Bool:
			f.SetBool(true)
		default:
			if f.IsZero() {
				t.Fatalf("%s has a type that the test does not know", from.Type().Field(i).Name)
			}
		}
	}
	config, err := c.engine()
	if err != nil {
		t.Fatal(err)
	}
	to := reflect.ValueOf(*config)
	for i := range from.NumField() {
		name := from.Type().Field(i).Name
		got := to.FieldByName(name)
		switch name {
		case "Authenticate":
			account, wait, err := config.Authenticate(nil)
			if account != "me" || wait != time.Minute || err == nil {
				t.Errorf("Authenticate: %q, %v, %v", account, wait, err)
			}
		case "Keys":
			if config.Keys != c.Keys.store || config.OwnKeys {
				t.Error("other keys, or the gateway's own")
			}
		case "Audit":
			if config.Tell == nil {
				t.Error("nobody is told")
			}
		case "Protocols":
			if config.ServeV1 || !config.ServeOHTTP {
				t.Error("other protocols")
			}
		case "UpstreamKey", "UpstreamTransport", "Replay", "Logger":
			if got.IsZero() {
				t.Errorf("%s is lost", name)
			}
		default:
			if !got.IsValid() || fmt.Sprint(got) != fmt.Sprint(from.Field(i)) {
				t.Errorf("%s: got %v, want %v", name, got, from.Field(i))
			}
		}
	}
}
