// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package tdx judges quotes of Intel TDX guests, of version 4 and 5, for sealedchat.Attested. It
// asks nobody: Intel's root is built in, and everything else comes with the quote.
//
// Evidence is the quote, with the chain of the platform's PCK certificate in it. The endorsements
// are what Intel's provisioning service (api.trustedservices.intel.com, or a cache of it) answers,
// seven, in this order:
//
//	0  TCB info of the platform for TDX: the JSON, as it came
//	1  its issuer chain in PEM: the signer's certificate, and the root
//	2  QE identity for TDX: the JSON, as it came
//	3  its issuer chain in PEM
//	4  the revocation list of the PCK Platform CA, in DER
//	5  its issuer chain in PEM
//	6  the revocation list of the root, in DER
package tdx

import (
	"bytes"
	"context"
	"crypto/x509"
	_ "embed" // for Intel's root
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tdx-guest/pcs"
	"github.com/google/go-tdx-guest/verify"
	"github.com/seed-017344ad/sealedchat"
)

// Format is the format of the documents that a [Verifier] judges.
const Format = "tdx"

// intelRoot is the certificate "Intel SGX Root CA", as Intel publishes it. The library has it too
// and does not give it out, and writes a warning where it uses its own.
//
//go:embed intel_root.pem
var intelRoot []byte

// Verifier judges TDX quotes by one policy. It may be used concurrently.
type Verifier struct {
	policy Policy
	root   *x509.Certificate
}

var _ sealedchat.Verifier = (*Verifier)(nil)

// New makes a verifier. It refuses a policy that names no measurement, or a value of the wrong
// size. The policy is copied.
func New(p Policy) (*Verifier, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	block, _ := pem.Decode(intelRoot)
	if block == nil {
		return nil, errors.New("tdx: Intel's built-in root is not in PEM")
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("tdx: Intel's built-in root: %w", err)
	}
	return &Verifier{policy: p.clone(), root: root}, nil
}

// Verify judges doc as sealedchat.Verifier says: that a platform of Intel's signed the quote over
// reportData, for a guest that the policy trusts, and that everything was valid at now. The error
// says what was wrong, without text of doc's; errors that it wraps may hold some. It makes no
// network access.
func (v *Verifier) Verify(ctx context.Context, doc sealedchat.AttestationDocument,
	reportData [64]byte, now time.Time) (result sealedchat.AttestationResult, err error) {
	// The library reads what the server sent, and its readers index without asking in places.
	defer func() {
		if p := recover(); p != nil {
			result = sealedchat.AttestationResult{}
			err = errors.New("tdx: the library failed to read the quote")
		}
	}()
	q, s, err := v.verify(ctx, doc, reportData, now)
	if err != nil {
		return sealedchat.AttestationResult{}, fmt.Errorf("tdx: %w", err)
	}
	return sealedchat.AttestationResult{
		Measurement: q.guest.measurement(),
		TCB:         fmt.Sprintf("%v svn=%x", s, q.guest.teeTCBSVN),
	}, nil
}

func (v *Verifier) verify(ctx context.Context, doc sealedchat.AttestationDocument,
	reportData [64]byte, now time.Time) (*quote, statuses, error) {
	none := statuses{}
	switch {
	case ctx.Err() != nil:
		return nil, none, ctx.Err()
	case doc.Format != Format:
		return nil, none, fmt.Errorf("the document's format is not %q", Format)
	case now.IsZero():
		return nil, none, errors.New("no time to judge dates by") // x509 would take the machine's
	}
	q, err := parseQuote(doc.Evidence)
	if err != nil {
		return nil, none, err
	}
	c, err := parseCollateral(doc.Endorsements)
	if err != nil {
		return nil, none, err
	}
	s, err := v.checkSignatures(ctx, q, c, now)
	if err != nil {
		return nil, none, err
	}
	if err := v.checkPolicy(q, s, reportData); err != nil {
		return nil, none, err
	}
	return q, s, nil
}

// checkSignatures has the library check the quote's signatures, the chain from the platform to
// Intel's root, what Intel signed about the platform, and both revocation lists. Then it checks
// what the library leaves out.
func (v *Verifier) checkSignatures(ctx context.Context, q *quote, c *collateral, now time.Time,
) (statuses, error) {
	roots := x509.NewCertPool()
	roots.AddCert(v.root)
	libraryErr := verify.TdxQuoteContext(ctx, q.library, &verify.Options{
		CheckRevocations: true,
		GetCollateral:    true,
		Getter:           c,
		Now: &verify.TimeSet{
			PckCertChain: now,
			TcbInfo:      now,
			QeIdentity:   now,
			PckCrl:       now,
			RootCaCrl:    now,
		},
		TrustedRoots: roots,
	})
	chain, err := verify.ExtractChainFromQuote(q.library)
	if err != nil {
		return statuses{}, &refusal{"the quote holds no chain of certificates", err}
	}
	pck, err := pcs.PckCertificateExtensions(chain.PCKCertificate)
	if err != nil {
		return statuses{}, &refusal{"the quote's certificate is not a platform's", err}
	}
	s, err := c.evaluate(&q.guest, pck,
		q.signed.GetCertificationData().GetQeReportCertificationData().GetQeReport())
	if libraryErr != nil && (err != nil || libraryErr.Error() != s.libraryText()) {
		return s, &refusal{"a signature or a certificate, or what Intel says of the platform," +
			" does not hold at this time", libraryErr}
	}
	if err != nil {
		return s, err
	}
	if !sameKey(chain.RootCertificate, v.root) || !sameKey(c.crlChain[1], v.root) ||
		!sameKey(c.crlChain[0], chain.IntermediateCertificate) {
		return s, errors.New("a certificate in the quote or beside its revocation list is not" +
			" Intel's")
	}
	// The library takes dates of these two, and does not check who signed them.
	for _, cert := range c.crlChain {
		if err := cert.CheckSignatureFrom(v.root); err != nil {
			return s, &refusal{"a certificate beside the revocation list is not Intel's", err}
		}
	}
	return s, c.checkDates(now)
}

func sameKey(a, b *x509.Certificate) bool {
	return bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo)
}

// checkPolicy compares a quote whose signatures hold with the policy.
func (v *Verifier) checkPolicy(q *quote, s statuses, reportData [64]byte) error {
	if !bytes.Equal(q.guest.reportData, reportData[:]) {
		return errors.New("the quote is over other data: another nonce, other keys, or another" +
			" gateway's")
	}
	if err := q.guest.check(); err != nil {
		return err
	}
	if err := v.policy.checkGuest(&q.guest); err != nil {
		return err
	}
	return s.check(v.policy)
}

// refusal is an error of the library, whose text may hold the server's, behind a text of our own.
type refusal struct {
	text string
	err  error
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.err }
