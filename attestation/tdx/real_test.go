// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/pcs"
	tdxtest "github.com/google/go-tdx-guest/testing"
	"github.com/google/go-tdx-guest/testing/testdata"
	"github.com/google/go-tdx-guest/verify"
	"github.com/seed-017344ad/sealedchat"
)

// theirDay is a day on which the collateral of the real quote was valid.
var theirDay = time.Date(2023, 7, 1, 0, 0, 0, 0, time.UTC)

// realDocument is a quote that Intel's hardware signed, with collateral that Intel signed. The
// library's file has a text behind the quote.
func realDocument() sealedchat.AttestationDocument {
	end, err := quoteEnd(testdata.RawQuote)
	if err != nil {
		panic(err)
	}
	chain := func(header map[string][]string, name string) []byte {
		text, err := url.QueryUnescape(header[name][0])
		if err != nil {
			panic(err)
		}
		return []byte(text)
	}
	return sealedchat.AttestationDocument{
		Format:   Format,
		Evidence: testdata.RawQuote[:end],
		Endorsements: [][]byte{
			testdata.TcbInfoBody, chain(tdxtest.TcbInfoHeader, pcs.TcbInfoIssuerChainPhrase),
			testdata.QeIdentityBody,
			chain(tdxtest.QeIdentityHeader, pcs.SgxQeIdentityIssuerChainPhrase),
			testdata.PckCrlBody, chain(tdxtest.PckCrlHeader, pcs.SgxPckCrlIssuerChainPhrase),
			testdata.RootCrlBody,
		},
	}
}

// realVerifier trusts the guest of the real quote, below Intel's root.
func realVerifier(tb testing.TB, statuses ...string) (*Verifier, [64]byte) {
	tb.Helper()
	q, err := parseQuote(realDocument().Evidence)
	if err != nil {
		tb.Fatal(err)
	}
	v, err := New(Policy{TCBStatuses: statuses, Measurements: []Measurement{
		{MRTD: q.guest.mrtd, RTMRs: [4][]byte(q.guest.rtmrs)}}})
	if err != nil {
		tb.Fatal(err)
	}
	return v, [64]byte(q.guest.reportData)
}

// platform is what the certificate in a quote says.
func platform(tb testing.TB, q *quote) *pcs.PckExtensions {
	tb.Helper()
	chain, err := verify.ExtractChainFromQuote(q.library)
	if err != nil {
		tb.Fatal(err)
	}
	pck, err := pcs.PckCertificateExtensions(chain.PCKCertificate)
	if err != nil {
		tb.Fatal(err)
	}
	return pck
}

// The signatures of the real quote hold, and those of what Intel said in its day. What Intel said
// is of machines with newer microcode: that is all that is wrong on that day. Today it has expired.
func TestRealQuote(t *testing.T) {
	v, data := realVerifier(t, "OutOfDate")
	for _, test := range []struct {
		now  time.Time
		want string
	}{
		{theirDay, "TCB status check: no matching TCB level found"},
		{today, "expired"},
		{theirDay.AddDate(-5, 0, 0), "not yet valid"},
	} {
		_, err := v.Verify(t.Context(), realDocument(), data, test.now)
		if err == nil || !strings.Contains(err.Error(), notNow) {
			t.Fatalf("on %v: Verify() = %v", test.now, err)
		}
		if reason := errors.Unwrap(errors.Unwrap(err)); !strings.Contains(reason.Error(),
			test.want) {
			t.Errorf("on %v: the reason is %q, want %q", test.now, reason, test.want)
		}
	}
	v.root = newChain(t).root.cert
	_, err := v.Verify(t.Context(), realDocument(), data, theirDay)
	if err == nil ||
		!strings.Contains(errors.Unwrap(errors.Unwrap(err)).Error(), "unknown authority") {
		t.Errorf("below another root: Verify() = %v", err)
	}
}

// Of real quotes of both versions the signature and the chain to Intel's root hold today, without
// collateral, and not with another byte.
func TestRealSignatures(t *testing.T) {
	v, _ := realVerifier(t)
	roots := x509.NewCertPool()
	roots.AddCert(v.root)
	now := &verify.TimeSet{PckCertChain: today}
	for _, raw := range [][]byte{realDocument().Evidence, testdata.RawQuoteV5} {
		for at, want := range map[int]bool{
			0: true, headerSize + 100: false, headerSize + 300: false,
		} {
			raw := bytes.Clone(raw)
			if !want {
				raw[at] ^= 1
			}
			q, err := parseQuote(raw)
			if err != nil {
				t.Fatal(err)
			}
			err = verify.TdxQuote(q.library, &verify.Options{TrustedRoots: roots, Now: now})
			if (err == nil) != want {
				t.Errorf("version %d with byte %d changed: TdxQuote() = %v", raw[0], at, err)
			}
		}
	}
}

// What this package makes of Intel's TCB info for a real platform is what the library makes of it.
func TestRealLevels(t *testing.T) {
	list := realDocument().Endorsements
	list[tcbInfo] = testdata.TcbInfoBodyV5
	c, err := parseCollateral(list)
	if err != nil {
		t.Fatal(err)
	}
	q, err := parseQuote(testdata.RawQuoteV5)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(mustRoot(t))
	options := &verify.Options{
		GetCollateral:    true,
		CheckRevocations: true,
		TrustedRoots:     roots,
		Getter:           c,
		Now: &verify.TimeSet{
			PckCertChain: today,
			TcbInfo:      theirDay,
			QeIdentity:   theirDay,
			PckCrl:       theirDay,
			RootCaCrl:    theirDay,
		},
	}
	if err := verify.TdxQuote(q.library, options); err != nil {
		t.Fatal(err)
	}
	module, qe, err := verify.SupportedTcbLevelsFromCollateral(q.library, options)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.evaluate(&q.guest, platform(t, q),
		q.signed.GetCertificationData().GetQeReportCertificationData().GetQeReport())
	if err != nil || s.module != module.TcbStatus || s.qe != qe.TcbStatus ||
		s.platform != "UpToDate" {
		t.Errorf("evaluate() = %+v, %v, want %q, %q", s, err, module.TcbStatus, qe.TcbStatus)
	}
}

func mustRoot(tb testing.TB) *x509.Certificate {
	tb.Helper()
	v, _ := realVerifier(tb)
	return v.root
}

func TestIntelRoot(t *testing.T) {
	v, _ := realVerifier(t)
	const want = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
	if got := fmt.Sprintf("%x", sha256.Sum256(v.root.Raw)); got != want {
		t.Errorf("the root's fingerprint is %s, want Intel's", got)
	}
	if err := v.root.CheckSignatureFrom(v.root); err != nil {
		t.Error(err)
	}
}

func TestNoNetwork(t *testing.T) {
	asked := 0
	old := http.DefaultTransport
	defer func() { http.DefaultTransport = old }()
	http.DefaultTransport = roundTripper(func(*http.Request) (*http.Response, error) {
		asked++
		return nil, errors.New("no network")
	})
	c := newChain(t)
	doc := c.document(t, [64]byte{})
	v := c.verifier(t, trusting())
	if _, err := v.Verify(t.Context(), doc, [64]byte{}, today); err != nil {
		t.Error(err)
	}
	for n := range doc.Endorsements {
		doc.Endorsements = doc.Endorsements[:n]
		if _, err := v.Verify(t.Context(), doc, [64]byte{}, today); err == nil {
			t.Error("incomplete endorsements were accepted")
		}
	}
	if asked != 0 {
		t.Errorf("the verifier asked the network %d times", asked)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// The library writes a warning where it uses its own copy of Intel's root.
func TestWritesNothing(t *testing.T) {
	if os.Getenv("TDX_CHILD") != "" {
		v, data := realVerifier(t)
		for _, now := range []time.Time{theirDay, today} {
			_, _ = v.Verify(t.Context(), realDocument(), data, now)
		}
		c := newChain(t)
		doc := c.document(t, [64]byte{})
		_, err := c.verifier(t, trusting()).Verify(t.Context(), doc, [64]byte{}, today)
		if err != nil {
			os.Exit(3)
		}
		os.Exit(0)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestWritesNothing$")
	cmd.Env = append(os.Environ(), "TDX_CHILD=1")
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("the verifier wrote %q (%v)", out, err)
	}
}
