// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/seed-017344ad/sealedchat"
)

// metrics are what Prometheus gets: numbers, names of accounts and the gateway's own words; no
// content and no key. The values of every label are bounded: accounts by the file of API keys.
type metrics struct {
	registry  *prometheus.Registry
	requests  *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	firstByte *prometheus.HistogramVec
	pieces    *prometheus.HistogramVec
	accounts  *accounts // nil: there are none
}

// otherAccount is the label of accounts that are in the file no more; the paths tell the protocol.
const (
	otherAccount  = "other"
	envelopePath  = "/v1/chat/secure_completion"
	obliviousPath = "/.well-known/ohttp-gateway"
)

// Bucket borders, in seconds. Never changed.
var (
	longTimes  = []float64{.01, .03, .1, .3, 1, 3, 10, 30, 60, 120, 300, 600}
	shortTimes = []float64{.001, .003, .01, .03, .1, .3, 1, 3, 10, 30, 60}
)

func newMetrics(s *service) *metrics {
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name, Help: help, Buckets: buckets,
		}, []string{"protocol"})
	}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sealedchat_requests_total",
			Help: "Requests, by account, protocol, status (the sealed one if there is one), and " +
				"the gateway's words for a refusal; with status 200 they say why it was cut.",
		}, []string{"account", "protocol", "status", "refusal"}),
		duration: histogram("sealedchat_request_duration_seconds",
			"From a request's header to the end of its answer.", longTimes),
		firstByte: histogram("sealedchat_first_byte_seconds",
			"From a request's header to the first piece of its answer.", longTimes),
		pieces: histogram("sealedchat_piece_gap_seconds",
			"Between two pieces of an answer.", shortTimes),
		accounts: s.accounts,
	}
	for _, p := range s.o.protocols { // so that they are there before the first request
		for _, h := range []*prometheus.HistogramVec{m.duration, m.firstByte, m.pieces} {
			h.WithLabelValues(string(p))
		}
	}
	m.registry.MustRegister(m.requests, m.duration, m.firstByte, m.pieces,
		&gatewayCollector{s: s}, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// observe measures the sealed requests that next serves.
func (m *metrics) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := &sample{start: time.Now()}
		switch {
		case r.URL.Path == envelopePath:
			s.protocol = string(sealedchat.ProtocolEnvelope)
		case r.URL.Path == obliviousPath && r.Method == http.MethodPost:
			s.protocol = string(sealedchat.ProtocolOHTTP)
		default:
			next.ServeHTTP(w, r)
			return
		}
		defer m.done(s)
		next.ServeHTTP(&timedWriter{w, s, m},
			r.WithContext(context.WithValue(r.Context(), sampleKey{}, s)))
	})
}

func (m *metrics) done(s *sample) {
	account := s.account
	if m.accounts != nil && account != "" && !m.accounts.has(account) {
		account = otherAccount
	}
	m.requests.WithLabelValues(account, s.protocol, s.statusText(), s.refusal).Inc()
	m.duration.WithLabelValues(s.protocol).Observe(time.Since(s.start).Seconds())
}

// forgetOthers takes out the accounts that are in the file no more.
func (m *metrics) forgetOthers(a *accounts) {
	if m == nil {
		return
	}
	for _, name := range a.gone() {
		m.requests.DeletePartialMatch(prometheus.Labels{"account": name})
	}
}

// server serves /metrics, /healthz and /readyz on an address.
func (m *metrics) server(address string, ready *readiness) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4, Timeout: 10 * time.Second,
	}))
	mux.HandleFunc("GET "+pathHealth, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"status":"ok"}` + "\n"))
	})
	mux.Handle(pathReady, ready)
	var served http.Handler = mux
	if onLoopback(address) {
		served = localNames(mux)
	}
	return &http.Server{
		Handler: served, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelWarn),
	}
}

// onLoopback reports whether only this machine reaches an address.
func onLoopback(address string) bool {
	host, _, _ := net.SplitHostPort(address)
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// localNames refuses requests whose Host is another name than localhost. A browser sends such a one
// for a page whose name was bound to this address (DNS rebinding), and the page reads the answer.
// An address is no name that could be bound.
func localNames(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, err := url.Parse("http://" + r.Host)
		if err != nil || !strings.EqualFold(u.Hostname(), "localhost") &&
			net.ParseIP(u.Hostname()) == nil {
			http.Error(w, "the header Host has to be an address or localhost", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// gatewayCollector asks the gateway when Prometheus asks.
type gatewayCollector struct{ s *service }

type gauge struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func describe(kind prometheus.ValueType, name, help string, labels ...string) gauge {
	return gauge{prometheus.NewDesc("sealedchat_"+name, help, labels, nil), kind}
}

// What gatewayCollector tells. Never changed.
var (
	openedBytes = describe(prometheus.CounterValue, "opened_bytes_total",
		"Content of requests that was opened.")
	sealedBytes = describe(prometheus.CounterValue, "sealed_bytes_total",
		"Content of answers that was sealed.")
	placesTaken = describe(prometheus.GaugeValue, "places_in_use",
		"Requests that are worked on.")
	placesAll = describe(prometheus.GaugeValue, "places",
		"Requests that can be worked on at the same time.")
	keyAge = describe(prometheus.GaugeValue, "key_age_seconds",
		"Age of the key in use, by kind.", "kind")
	rotations = describe(prometheus.CounterValue, "key_rotations_total",
		"Keys that replaced others, as this process saw it.")
	remembered = describe(prometheus.GaugeValue, "replay_memory_requests",
		"Requests in the gateway's own memory of replays; of one in Redis it knows no number.")
	readyNow = describe(prometheus.GaugeValue, "ready", "Whether /readyz says so.")
	memory   = describe(prometheus.GaugeValue, "secret_memory_bytes",
		"Memory of secrets: in use, of that not locked, and locked pages.", "state")
	memoryMisses = describe(prometheus.CounterValue, "secret_memory_misses_total",
		"Secrets for which there was no locked memory.")
	all = []gauge{openedBytes, sealedBytes, placesTaken, placesAll, keyAge, rotations, remembered,
		readyNow, memory, memoryMisses}
)

// Describe implements prometheus.Collector.
func (c *gatewayCollector) Describe(to chan<- *prometheus.Desc) {
	for _, g := range all {
		to <- g.desc
	}
}

// Collect implements prometheus.Collector.
func (c *gatewayCollector) Collect(to chan<- prometheus.Metric) {
	tell := func(g gauge, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(g.desc, g.kind, value, labels...)
	}
	stats, report := c.s.gateway.Stats(), sealedchat.MemoryReport()
	tell(openedBytes, float64(stats.BytesOpened))
	tell(sealedBytes, float64(stats.BytesSealed))
	tell(placesTaken, float64(stats.InFlight))
	tell(placesAll, float64(c.s.placesInAll()))
	tell(rotations, float64(stats.KeyRotations))
	if c.s.replays == nil {
		tell(remembered, float64(stats.Remembered))
	}
	tell(memory, float64(report.InUse), "in use")
	tell(memory, float64(report.Unlocked), "unlocked")
	tell(memory, float64(report.Locked), "locked pages")
	tell(memoryMisses, float64(report.Misses))
	ready := 0.
	if c.s.ready.check(context.Background()) == nil {
		ready = 1
	}
	tell(readyNow, ready)
	told := make(map[string]bool)
	for _, k := range c.s.keys.Keys() { // those in use come first
		if k.Retired.IsZero() && !k.Created.IsZero() && !told[k.Kind] { // a signer has no date
			told[k.Kind] = true
			tell(keyAge, time.Since(k.Created).Seconds(), k.Kind)
		}
	}
}
