// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package profile makes the vectors of the profile of Oblivious HTTP in testdata/ohttp-profile,
// which docs/spec-ohttp-profile.md describes in section 11.10. It knows the profile from the
// specification and from the RFCs, and shares no cryptography with internal/ohttp: a schedule of
// keys that is written twice is checked. Every byte follows from a label, so the files are the same
// each time.
package profile

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
)

// Hex is bytes, which are hex digits in JSON.
type Hex []byte

// MarshalText gives the digits.
func (h Hex) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

// UnmarshalText reads the digits.
func (h *Hex) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

// Key is a gateway's key with its configuration.
type Key struct {
	ID          uint8    `json:"id"`
	KEM         uint16   `json:"kem"`
	AEADs       []uint16 `json:"aeads"` // that the configuration offers, in its order
	Seed        Hex      `json:"seed"`
	Public      Hex      `json:"public_key"`
	Config      Hex      `json:"config"`
	Fingerprint Hex      `json:"fingerprint"`
}

// Chunk is one chunk of a request or an answer.
type Chunk struct {
	Plain  Hex  `json:"plain"`
	Final  bool `json:"final"`
	Nonce  Hex  `json:"nonce"`
	Sealed Hex  `json:"sealed"` // without the length before it
}

// Exchange is a request with its answer, and all that makes them.
type Exchange struct {
	Name    string  `json:"name"`
	Key     Key     `json:"key"`
	AEAD    uint16  `json:"aead"`
	Request Request `json:"request"`
	Answer  Answer  `json:"answer"`
}

// Request is the client's half.
type Request struct {
	// Randomness is what the encapsulation draws: the ephemeral private key of X25519; before it,
	// for X-Wing, the 32 bytes of ML-KEM.
	Randomness   Hex     `json:"randomness"`
	Enc          Hex     `json:"enc"`
	SharedSecret Hex     `json:"shared_secret"` // of the KEM
	Header       Hex     `json:"header"`
	Info         Hex     `json:"info"`
	HPKEKey      Hex     `json:"key"`
	BaseNonce    Hex     `json:"base_nonce"`
	Exporter     Hex     `json:"exporter_secret"`
	Message      Hex     `json:"message"` // binary HTTP
	Chunks       []Chunk `json:"chunks"`
	Sealed       Hex     `json:"sealed"` // the body of the POST
	ID           Hex     `json:"id"`
}

// Answer is the gateway's half.
type Answer struct {
	Secret    Hex     `json:"secret"` // exported
	Nonce     Hex     `json:"nonce"`  // of the answer, random
	PRK       Hex     `json:"prk"`
	AEADKey   Hex     `json:"key"`
	BaseNonce Hex     `json:"base_nonce"`
	Message   Hex     `json:"message"` // binary HTTP
	Chunks    []Chunk `json:"chunks"`
	Sealed    Hex     `json:"sealed"` // the body of the answer
}

// Exchanges is exchanges.json.
type Exchanges struct {
	Comment   string     `json:"comment"`
	Exchanges []Exchange `json:"exchanges"`
}

// Requests is requests.json: what a gateway with these keys does with bodies that are posted.
type Requests struct {
	Comment string        `json:"comment"`
	Now     int64         `json:"now"`    // the gateway's clock, in Unix seconds
	Window  int64         `json:"window"` // for dates, in seconds
	Keys    []Key         `json:"keys"`
	Cases   []RequestCase `json:"cases"`
}

// RequestCase is deliveries to a gateway that has seen nothing before.
type RequestCase struct {
	Name       string     `json:"name"`
	Deliveries []Delivery `json:"deliveries"`
}

// Delivery is one POST, and the verdict that it must get.
type Delivery struct {
	After int64 `json:"after"` // seconds after Requests.Now
	Body  Hex   `json:"body"`
	// Outer is the status of the answer. It is 200 for an answer that is sealed.
	Outer int `json:"outer"`
	// Inner is the status inside, 0 where nothing is sealed.
	Inner int `json:"inner,omitempty"`
	// Problem is the type of the problem document of a refusal, without what all have before #.
	Problem string `json:"problem,omitempty"`
	// Unprocessed: a sealed refusal has sealedchat-processed: no.
	Unprocessed bool `json:"unprocessed,omitempty"`
}

// Answers is answers.json: what a client makes of answers to requests of exchanges.json.
type Answers struct {
	Comment string       `json:"comment"`
	Cases   []AnswerCase `json:"cases"`
}

// The verdicts on an answer.
const (
	Complete  = "complete"  // the final chunk opened
	Truncated = "truncated" // the answer ended before its final chunk
	Refused   = "refused"   // a chunk does not open, or must not be there
)

// AnswerCase is the body of an answer, and the verdict that it must get.
type AnswerCase struct {
	Name     string `json:"name"`
	Exchange string `json:"exchange"` // whose request was sent
	Sealed   Hex    `json:"sealed"`
	Verdict  string `json:"verdict"`
	Opened   Hex    `json:"opened"` // what may be handed out before the verdict, and no more
}

// Lists is lists.json: lists of configurations, and signatures.
type Lists struct {
	Comment   string          `json:"comment"`
	Seed      Hex             `json:"signer_seed"`
	Public    Hex             `json:"signer_public_key"`
	Signer    Hex             `json:"signer_fingerprint"`
	List      Hex             `json:"list"`
	Created   int64           `json:"created"`
	Expires   int64           `json:"expires"`
	Message   Hex             `json:"message"` // that is signed
	Signature Hex             `json:"signature"`
	Header    string          `json:"header"`
	Signed    []SignatureCase `json:"signatures"`
	Parsed    []ListCase      `json:"lists"`
}

// SignatureCase is a header with a list, at a time. Signed: it is the signer's.
type SignatureCase struct {
	Name   string   `json:"name"`
	Header []string `json:"headers"` // the values of Ohttp-Keys-Signature
	List   Hex      `json:"list"`
	Now    int64    `json:"now"`
	Signed bool     `json:"signed"`
}

// ListCase is a list that is read by a client that takes X25519 as well.
type ListCase struct {
	Name      string `json:"name"`
	List      Hex    `json:"list"`
	Malformed bool   `json:"malformed,omitempty"` // it is refused as a whole
	// Chosen is the fingerprint of the configuration that the client seals to, and AEAD its choice;
	// nothing where no configuration is known.
	Chosen Hex    `json:"chosen,omitempty"`
	AEAD   uint16 `json:"aead,omitempty"`
}

// Files are the names of the files, and what is in them.
func Files() map[string]any {
	return map[string]any{"exchanges.json": makeExchanges(), "requests.json": makeRequests(),
		"answers.json": makeAnswers(), "lists.json": makeLists()}
}

// Encode is a file's text.
func Encode(content any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(content)
	return b.Bytes(), err
}

// Read reads a file in the repository's testdata/ohttp-profile; up is the way to its root.
func Read(up, name string, to any) error {
	text, err := os.ReadFile(filepath.Join(Dir(up), name))
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(to)
}

// Dir is the folder of the files.
func Dir(up string) string { return filepath.Join(up, "testdata", "ohttp-profile") }
