// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tdx-guest/pcs"
	pb "github.com/google/go-tdx-guest/proto/tdx"
)

// statuses are what Intel says of the parts of a platform that a quote depends on.
type statuses struct {
	platform pcs.TcbComponentStatus
	module   pcs.TcbComponentStatus // "" for the first module, which the platform's covers
	qe       pcs.TcbComponentStatus
}

// evaluate finds them in collateral that Intel signed. The library takes a module's status for the
// platform's if there is one, and so an old platform under a new module for up to date. Here all
// three count.
func (c *collateral) evaluate(g *guest, pck *pcs.PckExtensions,
	qe *pb.EnclaveReport) (statuses, error) {
	var s statuses
	info := &c.tcb.TcbInfo
	if len(g.teeTCBSVN) != 16 {
		return s, errors.New("the quote's TEE TCB SVN is malformed")
	}
	level := platformLevel(info.TcbLevels, g.teeTCBSVN, pck)
	if level == nil {
		return s, errors.New("no level of Intel's TCB info fits this platform")
	}
	s.platform = level.TcbStatus
	if version := g.teeTCBSVN[1]; version > 0 {
		module := moduleLevel(info.TdxModuleIdentities, g)
		if module == nil {
			return s, fmt.Errorf("what Intel signed does not know TDX module %d.%d", version,
				g.teeTCBSVN[0])
		}
		s.module = module.TcbStatus
	}
	if err := checkEnclave(&c.qe.EnclaveIdentity, qe); err != nil {
		return s, err
	}
	for _, l := range c.qe.EnclaveIdentity.TcbLevels {
		if l.Tcb.Isvsvn <= qe.GetIsvSvn() {
			s.qe = l.TcbStatus
			return s, nil
		}
	}
	return s, errors.New("no level of Intel's QE identity fits this quoting enclave")
}

// platformLevel is the first level, of a list from new to old, that the platform reaches in all
// parts. A module that came after the first has a list of its own.
func platformLevel(levels []pcs.TcbLevel, svn []byte, pck *pcs.PckExtensions) *pcs.TcbLevel {
	first := 0
	if svn[1] > 0 {
		first = 2
	}
	for i := range levels {
		tcb := &levels[i].Tcb
		if pck.TCB.PCESvn >= tcb.Pcesvn &&
			reaches(pck.TCB.CPUSvnComponents, tcb.SgxTcbcomponents, 0) &&
			reaches(svn, tcb.TdxTcbcomponents, first) {
			return &levels[i]
		}
	}
	return nil
}

func reaches(svn []byte, want []pcs.TcbComponent, first int) bool {
	if len(svn) != len(want) {
		return false
	}
	for i := first; i < len(svn); i++ {
		if svn[i] < want[i].Svn {
			return false
		}
	}
	return true
}

// moduleLevel is the level of the TDX module that made the report, if Intel signed one like it.
func moduleLevel(identities []pcs.TdxModuleIdentity, g *guest) *pcs.TcbLevel {
	id := fmt.Sprintf("TDX_%02x", g.teeTCBSVN[1])
	for _, m := range identities {
		if !strings.EqualFold(m.ID, id) || !bytes.Equal(m.Mrsigner.Bytes, g.seamSigner) ||
			!masked(g.seamAttributes, m.AttributesMask.Bytes, m.Attributes.Bytes) {
			continue
		}
		for i := range m.TcbLevels {
			if uint32(g.teeTCBSVN[0]) >= m.TcbLevels[i].Tcb.Isvsvn {
				return &m.TcbLevels[i]
			}
		}
	}
	return nil
}

// checkEnclave compares the enclave that signed the quote with Intel's quoting enclave.
func checkEnclave(id *pcs.EnclaveIdentity, qe *pb.EnclaveReport) error {
	misc := binary.LittleEndian.AppendUint32(nil, qe.GetMiscSelect())
	if !bytes.Equal(id.Mrsigner.Bytes, qe.GetMrSigner()) ||
		uint32(id.IsvProdID) != qe.GetIsvProdId() ||
		!masked(misc, id.MiscselectMask.Bytes, id.Miscselect.Bytes) ||
		!masked(qe.GetAttributes(), id.AttributesMask.Bytes, id.Attributes.Bytes) {
		return errors.New("the quote was not signed by Intel's quoting enclave")
	}
	return nil
}

// masked tells whether value has the bits of want where mask has ones.
func masked(value, mask, want []byte) bool {
	if len(value) != len(mask) || len(value) != len(want) {
		return false
	}
	for i := range value {
		if value[i]&mask[i] != want[i] {
			return false
		}
	}
	return true
}

// libraryText is what the library says of the statuses when nothing else is wrong: "" for nothing.
// It stops at the first that is not up to date.
func (s statuses) libraryText() string {
	tdx := s.platform
	if s.module != "" {
		tdx = s.module
	}
	const tdxPrefix = "TDX TCB info reported by Intel PCS failed TCB status check: "
	const qePrefix = "QE Identity reported by Intel PCS failed TCB status check: "
	switch {
	case tdx == pcs.TcbComponentStatusOutOfDate:
		return tdxPrefix + "unable to find latest status of TDX TCB, it is now OutOfDate"
	case tdx != pcs.TcbComponentStatusUpToDate:
		return fmt.Sprintf("%sTDX TCB Status is not %q, found %q", tdxPrefix,
			pcs.TcbComponentStatusUpToDate, tdx)
	case s.qe == pcs.TcbComponentStatusOutOfDate:
		return qePrefix + "unable to find latest status of Enclave TCB, it is now OutOfDate"
	case s.qe != pcs.TcbComponentStatusUpToDate:
		return fmt.Sprintf("%sQE TCB Status is not %q, found %q", qePrefix,
			pcs.TcbComponentStatusUpToDate, s.qe)
	}
	return ""
}

// check refuses statuses that the policy does not allow.
func (s statuses) check(p Policy) error {
	for name, status := range map[string]pcs.TcbComponentStatus{
		"platform": s.platform, "TDX module": s.module, "quoting enclave": s.qe,
	} {
		if status != "" && !p.allows(status) {
			return fmt.Errorf("the %s has the status %q, which Policy.TCBStatuses does not name",
				name, status)
		}
	}
	return nil
}

func (s statuses) String() string {
	text := fmt.Sprintf("platform=%s qe=%s", s.platform, s.qe)
	if s.module != "" {
		text += fmt.Sprintf(" module=%s", s.module)
	}
	return text
}
