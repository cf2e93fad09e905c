// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/google/go-tdx-guest/pcs"
)

// The places of the endorsements.
const (
	tcbInfo = iota
	tcbInfoChain
	qeIdentity
	qeIdentityChain
	pckCRL
	pckCRLChain
	rootCRL
	places
)

// collateral is what came along with a quote, parsed and not yet trusted. It is also what the
// library takes for Intel's server.
type collateral struct {
	list     [][]byte // tcbInfo and qeIdentity as this package wrote them again
	tcb      pcs.TdxTcbInfo
	qe       pcs.QeIdentity
	pckCRL   *x509.RevocationList
	rootCRL  *x509.RevocationList
	crlChain []*x509.Certificate // of the PCK revocation list: its signer and the root
}

// parseCollateral reads the endorsements.
func parseCollateral(list [][]byte) (*collateral, error) {
	if len(list) != places {
		return nil, fmt.Errorf(
			"%d endorsements, want %d: TCB info, QE identity and PCK revocation list,"+
				" each with its chain, and the root's revocation list",
			len(list),
			places,
		)
	}
	c := &collateral{list: bytesClone(list)}
	for _, doc := range []struct {
		name, member string
		place        int
		into         any
	}{
		{"TCB info", "tcbInfo", tcbInfo, &c.tcb},
		{"QE identity", "enclaveIdentity", qeIdentity, &c.qe},
	} {
		body, err := normalise(doc.member, list[doc.place])
		if err == nil {
			c.list[doc.place], err = body, json.Unmarshal(body, doc.into)
		}
		if err != nil {
			return nil, &refusal{
				"the endorsement in the place of the " + doc.name + " is not Intel's JSON",
				err,
			}
		}
	}
	var err error
	if c.pckCRL, err = x509.ParseRevocationList(list[pckCRL]); err != nil {
		return nil, &refusal{
			"the endorsement in the place of the PCK revocation list is none in DER",
			err,
		}
	}
	if c.rootCRL, err = x509.ParseRevocationList(list[rootCRL]); err != nil {
		return nil, &refusal{
			"the endorsement in the place of the root's revocation list is none in DER",
			err,
		}
	}
	for _, place := range []int{tcbInfoChain, qeIdentityChain, pckCRLChain} {
		chain, err := parseChain(list[place])
		if err != nil {
			return nil, &refusal{
				fmt.Sprintf("endorsement %d is not two certificates in PEM", place),
				err,
			}
		}
		if place == pckCRLChain {
			c.crlChain = chain
		}
	}
	return c, nil
}

func bytesClone(list [][]byte) [][]byte { return append([][]byte(nil), list...) }

// normalise takes {"<member>":…,"signature":"…"} apart and puts it together again. Nothing else
// is taken: the library checks the signature over the member with exactly this name, and reads the
// values from members whose names differ in case, or that come again later.
func normalise(member string, body []byte) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(body))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not an object")
	}
	found := map[string]json.RawMessage{}
	for dec.More() {
		t, err := dec.Token()
		name, ok := t.(string)
		switch {
		case err != nil:
			return nil, err
		case !ok || name != member && name != "signature":
			return nil, errors.New("a member with another name")
		case found[name] != nil:
			return nil, errors.New("a member that comes twice")
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, err
		}
		found[name] = raw
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if rest := body[dec.InputOffset():]; len(bytes.TrimSpace(rest)) != 0 {
		return nil, errors.New("something behind the object")
	}
	if found[member] == nil || found["signature"] == nil {
		return nil, errors.New("a member is missing")
	}
	return fmt.Appendf(nil, `{"%s":%s,"signature":%s}`, member, found[member],
		found["signature"]), nil
}

// parseChain reads two certificates in PEM, the signer's and the root, with nothing else.
func parseChain(text []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for rest := text; len(bytes.TrimSpace(rest)) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("not a certificate in PEM")
		}
		if len(chain) == 2 {
			return nil, errors.New("more than two certificates")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		chain = append(chain, cert)
	}
	if len(chain) != 2 {
		return nil, errors.New("fewer than two certificates")
	}
	return chain, nil
}

// Get gives the library what it would fetch. Every address that is not one of the other three is
// the root's revocation list: the root's certificate names it.
func (c *collateral) Get(address string) (map[string][]string, []byte, error) {
	base, _, _ := strings.Cut(pcs.TcbInfoURL(""), "?")
	crl, _, _ := strings.Cut(pcs.PckCrlURL(""), "?")
	switch got, _, _ := strings.Cut(address, "?"); got {
	case base:
		return c.header(pcs.TcbInfoIssuerChainPhrase, tcbInfoChain), c.list[tcbInfo], nil
	case pcs.QeIdentityURL():
		return c.header(pcs.SgxQeIdentityIssuerChainPhrase,
			qeIdentityChain), c.list[qeIdentity], nil
	case crl:
		return c.header(pcs.SgxPckCrlIssuerChainPhrase, pckCRLChain), c.list[pckCRL], nil
	default:
		return nil, c.list[rootCRL], nil
	}
}

// header is the header that Intel's server gives a chain in. The library wants nothing behind it.
func (c *collateral) header(name string, place int) map[string][]string {
	return map[string][]string{
		name: {url.QueryEscape(string(bytes.TrimSpace(c.list[place])) + "\n")},
	}
}

// checkDates refuses what is not valid yet. The library refuses what has expired.
func (c *collateral) checkDates(now time.Time) error {
	for name, from := range map[string]time.Time{
		"TCB info":                   c.tcb.TcbInfo.IssueDate,
		"QE identity":                c.qe.EnclaveIdentity.IssueDate,
		"PCK revocation list":        c.pckCRL.ThisUpdate,
		"root's revocation list":     c.rootCRL.ThisUpdate,
		"PCK revocation list's root": c.crlChain[1].NotBefore,
	} {
		if now.Before(from) {
			return fmt.Errorf("the %s is not valid yet", name)
		}
	}
	return nil
}
