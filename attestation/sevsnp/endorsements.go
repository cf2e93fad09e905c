// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sevsnp

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/verify/trust"
)

// The places of the endorsements.
const (
	endorsementKey = iota // the VCEK's or the VLEK's certificate
	endorsementASK        // the certificate that signed it
	endorsementARK        // AMD's root for the product
	endorsementCRL        // AMD's revocation list
)

// endorsements are what came along with a report, parsed and not yet trusted.
type endorsements struct {
	key *x509.Certificate
	crl *x509.RevocationList // nil: none came
	ask *x509.Certificate    // nil: none came
	ark *x509.Certificate
}

// parseEndorsements reads them. There are one, three, or four.
func parseEndorsements(list [][]byte) (*endorsements, error) {
	if n := len(list); n != 1 && n != 3 && n != 4 {
		return nil, fmt.Errorf("%d endorsements, want the certificate of the chip's key,"+
			" then optionally ASK and ARK, then optionally the revocation list", n)
	}
	e := &endorsements{}
	var err error
	if e.key, err = parseCertificate("the VCEK or VLEK", list[endorsementKey]); err != nil {
		return nil, err
	}
	if len(list) > endorsementARK {
		if e.ask, err = parseCertificate("ASK", list[endorsementASK]); err != nil {
			return nil, err
		}
		if e.ark, err = parseCertificate("ARK", list[endorsementARK]); err != nil {
			return nil, err
		}
	}
	if len(list) > endorsementCRL {
		if e.crl, err = x509.ParseRevocationList(list[endorsementCRL]); err != nil {
			return nil, &refusal{"the fourth endorsement is no revocation list in DER", err}
		}
	}
	return e, nil
}

func parseCertificate(name string, der []byte) (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, &refusal{
			"the endorsement in the place of " + name + " is no certificate in DER",
			err,
		}
	}
	return cert, nil
}

// chain is what the library takes. ASK and ARK are those that this program trusts: it never asks
// AMD's server for them, and those that came along say nothing.
func (e *endorsements) chain(root *trust.AMDRootCerts, vlek bool) *spb.CertificateChain {
	c := &spb.CertificateChain{ArkCert: root.ProductCerts.Ark.Raw}
	if vlek {
		c.VlekCert, c.AskCert = e.key.Raw, root.ProductCerts.Asvk.Raw
	} else {
		c.VcekCert, c.AskCert = e.key.Raw, root.ProductCerts.Ask.Raw
	}
	return c
}

// checkChain refuses an ASK and an ARK with other keys than the trusted ones, or that AMD's root
// did not sign, so that a document has no bytes that nobody looked at, and certificates out of
// date, to say so in these words.
func (e *endorsements) checkChain(ask, ark *x509.Certificate, now time.Time) error {
	for _, cert := range []*x509.Certificate{e.key, ask, ark} {
		if now.After(cert.NotAfter) {
			return errors.New("a certificate between the report and AMD's root has expired")
		}
		if now.Before(cert.NotBefore) {
			return errors.New("a certificate between the report and AMD's root is not valid yet")
		}
	}
	if e.ask == nil {
		return nil
	}
	if !bytes.Equal(e.ask.RawSubjectPublicKeyInfo, ask.RawSubjectPublicKeyInfo) ||
		!bytes.Equal(e.ark.RawSubjectPublicKeyInfo, ark.RawSubjectPublicKeyInfo) ||
		e.ask.CheckSignatureFrom(ark) != nil || e.ark.CheckSignatureFrom(ark) != nil {
		return errors.New("the ASK or the ARK that came along is not AMD's")
	}
	return nil
}

// checkRevocations judges the revocation list, if there is one. ARK signs it, so that it speaks of
// the keys that ARK signed.
func (e *endorsements) checkRevocations(ask, ark *x509.Certificate, required bool,
	now time.Time) error {
	if e.crl == nil {
		if required {
			return errors.New("no revocation list came along, and the policy requires AMD's")
		}
		return nil
	}
	if err := e.crl.CheckSignatureFrom(ark); err != nil {
		return &refusal{"the revocation list is not signed by AMD's root", err}
	}
	switch {
	case now.Before(e.crl.ThisUpdate):
		return errors.New("the revocation list is not valid yet")
	case e.crl.NextUpdate.IsZero() || now.After(e.crl.NextUpdate):
		return errors.New("the revocation list has expired")
	}
	for _, bad := range e.crl.RevokedCertificateEntries {
		for _, cert := range []*x509.Certificate{ask, ark} {
			if bad.SerialNumber.Cmp(cert.SerialNumber) == 0 {
				return fmt.Errorf("AMD revoked the certificate %q", cert.Subject.CommonName)
			}
		}
	}
	return nil
}
