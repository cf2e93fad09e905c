// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// Requests that are sealed by hand through httputil.ReverseProxy, cut at random by either end or
// not at all: nothing stays behind, nothing crashes, and no cut answer passes for a whole one.
func TestObliviousCutsThroughRelay(t *testing.T) {
	w := newCutWorld(t)
	config := keyConfig(t, w.g)
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	t.Cleanup(transport.CloseIdleConnections)
	w.run(t, transport.CloseIdleConnections, func(p cutPlan) string {
		leave := -1
		if p.leaves {
			leave = 40 * p.after
		}
		complete, err := throughRelay(
			t,
			transport,
			w.relay,
			config,
			fmt.Sprintf(`{"events":%d,"cut":%q}`, p.events, p.cut),
			leave,
		)
		switch {
		case err != nil && !p.leaves && !errors.Is(err, ohttp.ErrTruncated) && p.cut == "":
			t.Errorf("%+v: %v", p, err)
		case complete && p.cut != "":
			t.Errorf("%+v: a cut answer passed for a whole one", p)
		case complete:
			return "whole"
		case p.leaves:
			return "left"
		case p.cut == "":
			t.Errorf("%+v: a whole answer did not arrive", p)
		default:
			return "cut"
		}
		return ""
	})
}

// throughRelay sends one request, and reads its answer to the end or until the client leaves.
func throughRelay(
	t *testing.T,
	rt http.RoundTripper,
	relay string,
	c *ohttp.Config,
	body string,
	leave int,
) (complete bool, err error) {
	q, err := ohttp.NewRequest(c)
	if err != nil {
		return false, err
	}
	defer q.Close()
	sealed, err := q.Seal(nil, innerRequest(t, body))
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(
		ctx,
		http.MethodPost,
		relay+ohttp.Path,
		bytes.NewReader(sealed),
	)
	if err != nil {
		return false, err
	}
	req.Header.Set("Content-Type", ohttp.TypeRequest)
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false, fmt.Errorf("status %d", resp.StatusCode)
	}
	reader, err := q.Response(resp.Body, 0)
	if err != nil {
		return false, err
	}
	defer reader.Close()
	head, content, err := bhttp.ReadResponse(reader, bhttp.Limits{})
	if err != nil {
		return false, err
	}
	if head.Status != http.StatusOK { // cut before it had begun
		return false, fmt.Errorf("inner status %d", head.Status)
	}
	if leave >= 0 {
		if _, err = io.CopyN(io.Discard, content, int64(leave)); err == nil {
			return false, nil
		}
		return err == io.EOF, err
	}
	_, err = io.Copy(io.Discard, content)
	return err == nil, err
}
