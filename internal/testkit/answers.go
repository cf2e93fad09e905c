// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// AnswerCase is what an OpenAI-compatible server sends, and what a caller must get of it.
type AnswerCase struct {
	Name, Kind    string
	Stream, Whole bool     // how it is asked for
	Protocols     []string // "v1", "ohttp"
	Status        int
	ContentType   string `json:"content_type"`
	Body          []string
	Hold          int // milliseconds that the connection stays open behind the last piece
	Want          AnswerWant

	Header map[string]string // of this package's own cases
}

// AnswerWant is the whole text, and what went wrong: "", "api", "truncated", or "schema".
type AnswerWant struct {
	Text, Error   string
	Words         string
	TotalTokens   int64 `json:"total_tokens"`
	Calls         [][2]string
	Extra         map[string]string
	FinishNot     string `json:"finish_not"`
	SentBackHasNo string `json:"sent_back_has_no"`
	WithinMS      int64  `json:"within_ms"`
}

// AnswerCases reads testdata/cases/answers.json, and fails when there are fewer than there were.
func AnswerCases(t testing.TB) (cases []AnswerCase) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(Dir(t), "testdata", "cases", "answers.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) < 36 {
		t.Fatalf("only %d cases", len(cases))
	}
	return cases
}

// Over reports whether the case is for a protocol, "v1" or "ohttp".
func (c *AnswerCase) Over(protocol string) bool { return slices.Contains(c.Protocols, protocol) }

// ServeHTTP sends the answer piece by piece.
func (c *AnswerCase) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	for name, value := range c.Header {
		w.Header().Set(name, value)
	}
	w.Header().Set("Content-Type", c.ContentType)
	w.WriteHeader(c.Status)
	for _, piece := range c.Body {
		_, _ = io.WriteString(w, piece)
		_ = http.NewResponseController(w).Flush()
	}
	if c.Hold > 0 {
		select {
		case <-time.After(time.Duration(c.Hold) * time.Millisecond):
		case <-r.Context().Done():
		}
	}
}
