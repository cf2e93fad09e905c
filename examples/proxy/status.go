// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/json"
	"html/template"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

// This file answers what the proxy knows itself: how it is sealed, and the models of -models.

// seenKey is a server's key, and when the client began to use it.
type seenKey struct {
	key   *sealedchat.PublicKey
	since time.Time
}

// status is what /sealed tells. It has no content and no secret.
type status struct {
	Protocol string `json:"protocol"`
	Server   string `json:"server"`
	Trust    string `json:"trust"`  // "pin", "attested" or "https"
	Key      string `json:"key"`    // the fingerprint of the key that is sealed to; "" = none yet
	Signer   string `json:"signer"` // of the list that the key is from; "" = none
	// KeyAge is in seconds, from the time when this process began to use the key.
	KeyAge      int64  `json:"key_age_seconds"`
	Attestation string `json:"attestation"` // "sev-snp" or "tdx"; "none": no hardware was asked
	// Attested is what the hardware's evidence proved when this process began to use the key; null
	// without.
	Attested *sealedchat.AttestationResult `json:"attested"`
	Uptime   int64                         `json:"uptime_seconds"`

	Requests int64                   `json:"requests"` // that were carried
	Running  int64                   `json:"running"`
	Failed   int64                   `json:"failed"`  // without an answer, or cut
	Refused  int64                   `json:"refused"` // by the proxy itself
	Client   sealedchat.Stats        `json:"client"`
	Memory   sealedchat.MemoryStatus `json:"memory"`
}

func (e *endpoint) status() *status {
	s := &status{
		Protocol: string(e.server.Protocol), Server: e.server.URL, Trust: "https",
		Attestation: "none", Uptime: int64(time.Since(e.started).Seconds()),
		Requests: e.counts.requests.Load(), Running: e.counts.running.Load(),
		Failed: e.counts.failed.Load(), Refused: e.counts.refused.Load(),
		Client: e.client.Stats(), Memory: sealedchat.MemoryReport(),
	}
	if e.server.Pins != nil {
		s.Trust = "pin"
	}
	if e.server.Verifiers != nil {
		s.Trust = "attested"
	}
	if seen := e.key.Load(); seen != nil {
		if s.Attested = seen.key.Attestation(); s.Attested != nil {
			s.Attestation = s.Attested.Format
		}
		s.Key, s.Signer = seen.key.Fingerprint(), seen.key.Signer()
		s.KeyAge = int64(time.Since(seen.since).Seconds())
	}
	return s
}

// serveStatus answers GET /sealed: a page for those who accept HTML and do not prefer JSON, and
// else JSON.
func (e *endpoint) serveStatus(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		refuse(w, &refusal{http.StatusMethodNotAllowed, "method_not_allowed", "want GET"})
		return
	}
	s := e.status()
	w.Header().Set("Vary", "Accept")
	if !wantsPage(r.Header.Values("Accept")) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	found := cmp.Or(s.Attested, &sealedchat.AttestationResult{Measurement: "none"})
	_ = page().Execute(w, []row{
		{"Protocol", s.Protocol}, {"Server", s.Server}, {"Trust", s.Trust},
		{"Key", cmp.Or(s.Key, "none yet")}, {"Signer", cmp.Or(s.Signer, "none")},
		{"Key in use for", (time.Duration(s.KeyAge) * time.Second).String()},
		{"Attestation", s.Attestation}, {"Measurement", found.Measurement},
		{"Platform", found.TCB}, {"Memory of secrets", s.Client.Memory},
		{"Core dumps off", yesNo(s.Memory.CoreDumpsOff)},
		{"Others of this user may read the memory", yesNo(s.Memory.Dumpable)},
		{"Requests", s.Requests}, {"Running", s.Running}, {"Failed", s.Failed},
		{"Refused here", s.Refused},
		{"Bytes sealed", s.Client.BytesSealed}, {"Bytes opened", s.Client.BytesOpened},
		{"Up for", (time.Duration(s.Uptime) * time.Second).String()},
	})
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// wantsPage reports whether Accept lists HTML before JSON.
func wantsPage(accept []string) bool {
	for part := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		switch kind, _, _ := mime.ParseMediaType(part); kind {
		case "text/html", "application/xhtml+xml":
			return true
		case "application/json":
			return false
		}
	}
	return false
}

type row struct {
	Name  string
	Value any
}

// page is a plain page without scripts or styles: the policy of all answers forbids both.
func page() *template.Template {
	return template.Must(template.New("").Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>sealedchat proxy</title></head>
<body><h1>sealedchat proxy</h1>
<table>
{{range .}}<tr><th align="left">{{.Name}}</th><td>{{.Value}}</td></tr>
{{end}}</table>
<p>As JSON: curl /sealed. Reload the page for new numbers.</p>
</body></html>
`))
}

// isModels reports whether a request is for the list of models, or for one of them.
func isModels(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) &&
		(r.URL.Path == "/v1/models" || strings.HasPrefix(r.URL.Path, "/v1/models/"))
}

// serveModels answers from -models: over v1 only chat completions travel.
func (e *endpoint) serveModels(w http.ResponseWriter, r *http.Request) {
	model := func(name string) any {
		return map[string]any{"id": name, "object": "model", "created": e.started.Unix(),
			"owned_by": ownerOf(e.server.URL)}
	}
	var answer any
	if name, one := strings.CutPrefix(r.URL.Path, "/v1/models/"); one {
		if !slices.Contains(e.models, name) {
			refuse(w, &refusal{http.StatusNotFound, "model_not_found",
				"-models does not list this model"})
			return
		}
		answer = model(name)
	} else {
		data := []any{}
		for _, name := range e.models {
			data = append(data, model(name))
		}
		answer = map[string]any{"object": "list", "data": data}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

func ownerOf(server string) string {
	if u, err := url.Parse(server); err == nil {
		return u.Hostname()
	}
	return ""
}
