// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

// replays is a sealedchat.ReplayCache that several gateways share. An id is one key in Redis. Its
// value is the client that came with it, and "+" if the claim is in force or "-" if it was
// released. Redis runs a script as a whole: if two gateways claim an id at the same time, one of
// them gets true.
//
// Redis must keep all ids: without maxmemory, or with the policy noeviction. With that policy Redis
// refuses a claim if it has no room, and the gateway refuses the request. Replication is
// asynchronous: an id that was claimed just before a failover can be claimed again after it.
//
// A restart of Redis loses ids that are only in memory. Then an attacker can replay requests that
// they captured before: over Oblivious HTTP while the date is recent, in protocol v1 for a day.
// "appendonly yes" with "appendfsync always" keeps the ids.
type replays struct {
	redis  redis.UniversalClient
	prefix string
	// margin is how much longer than asked for an id is kept: as much as the clocks of the gateways
	// may differ, because each gateway checks the date of a request by its own clock.
	margin time.Duration

	unfit  atomic.Pointer[unfit] // the fault that watch found last; nil = none
	warned bool
}

var _ sealedchat.ReplayCache = (*replays)(nil)

var claimScript = redis.NewScript(`
local value = redis.call('GET', KEYS[1])
if not value then
	redis.call('SET', KEYS[1], ARGV[1] .. '+', 'PX', ARGV[2])
	return 1
end
if value == ARGV[1] .. '-' then
	redis.call('SET', KEYS[1], ARGV[1] .. '+', 'KEEPTTL')
	return 1
end
return 0`)

var releaseScript = redis.NewScript(`
local value = redis.call('GET', KEYS[1])
if value and string.sub(value, -1) == '+' then
	redis.call('SET', KEYS[1], string.sub(value, 1, -2) .. '-', 'KEEPTTL')
end
return 0`)

func (r *replays) key(id [32]byte) []string {
	return []string{r.prefix + hex.EncodeToString(id[:])}
}

func (r *replays) Claim(ctx context.Context, id, client [32]byte, until time.Time) (bool, error) {
	if why := r.unfit.Load(); why != nil {
		return false, *why
	}
	life := max(time.Until(until), 0) + r.margin
	n, err := claimScript.Run(ctx, r.redis, r.key(id), client[:], max(life.Milliseconds(), 1)).Int()
	return n == 1, err
}

// Ready says why claims would fail now. It writes, as a claim does: a full server can be read.
func (r *replays) Ready(ctx context.Context) error {
	if why := r.unfit.Load(); why != nil {
		return *why
	}
	return r.redis.Set(ctx, r.prefix+"ready", 1, time.Minute).Err()
}

func (r *replays) Release(ctx context.Context, id [32]byte) error {
	return releaseScript.Run(ctx, r.redis, r.key(id)).Err()
}

// connect makes a Redis client that gives up soon and sends nothing twice. A claim that is sent
// again after a lost answer would find itself, and the gateway would refuse a request that is no
// replay.
func connect(url string, password *sealedchat.Secret) (redis.UniversalClient, error) {
	o, err := redis.ParseURL(url)
	if err != nil {
		return nil, errors.New("not a Redis URL") // the error would quote it with its password
	}
	if o.TLSConfig != nil && o.TLSConfig.InsecureSkipVerify {
		return nil, errors.New("with skip_verify anybody could be that server; SSL_CERT_FILE names " +
			"a file with the certificate of its authority")
	}
	if o.Password != "" {
		return nil, errors.New("everybody on this machine sees a password in it: give that in " +
			redisVariable + ", or in the file of " + redisVariable + "_FILE")
	}
	if password != nil {
		err := password.Use(func(b []byte) error { o.Password = string(b); return nil })
		if err != nil {
			return nil, err
		}
	}
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = time.Second, time.Second,
		time.Second, 2*time.Second
	o.MaxRetries = -1
	o.DialerRetries = 1
	o.ContextTimeoutEnabled = true
	return redis.NewClient(o), nil
}

// unfit says that a server may forget ids that it must remember.
type unfit string

func (e unfit) Error() string { return "redis: " + string(e) }

// checkEviction refuses a server that forgets ids when it is full.
func checkEviction(ctx context.Context, r redis.UniversalClient) error {
	info, err := r.Info(ctx, "memory").Result()
	if err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	if limit, policy := field(info, "maxmemory"), field(info, "maxmemory_policy"); limit != "0" &&
		policy != "noeviction" {
		return unfit(fmt.Sprintf(
			"maxmemory-policy is %q, want noeviction: what it forgets can be replayed", policy))
	}
	return nil
}

// checkDurable refuses a server that forgets ids when it restarts, or that may.
func checkDurable(ctx context.Context, r redis.UniversalClient) error {
	info, err := r.Info(ctx, "persistence").Result()
	if err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	if field(info, "aof_enabled") != "1" {
		return unfit("appendonly is off: what was served before a restart can be replayed after it")
	}
	fsync, err := r.ConfigGet(ctx, "appendfsync").Result()
	switch {
	case err != nil:
		if _, told := errors.AsType[redis.Error](err); !told {
			return fmt.Errorf("redis: %w", err)
		}
		return unfit("appendfsync cannot be asked for; it has to be always")
	case fsync["appendfsync"] != "always":
		return unfit(fmt.Sprintf(
			"appendfsync is %q, want always: what was served just before a crash can be replayed "+
				"after it", fsync["appendfsync"]))
	}
	return nil
}

func field(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+":"); ok {
			return value
		}
	}
	return ""
}

// fit checks the server. A server that may forget ids when it restarts is an error with durable;
// without, fit warns once.
func (r *replays) fit(ctx context.Context, durable bool, log *slog.Logger) error {
	if err := checkEviction(ctx, r.redis); err != nil {
		return err
	}
	err := checkDurable(ctx, r.redis)
	if _, ok := errors.AsType[unfit](err); ok && !durable {
		if !r.warned {
			log.Warn("what Redis forgets can be replayed, for as long as a request's date is "+
				"near; of protocol v1 for a day", "cause", err)
			r.warned = true
		}
		return nil
	}
	return err
}

const (
	watchFit   = 30 * time.Second
	watchUnfit = time.Second
	notAsked   = unfit("the server has not answered yet")
)

// watch checks the server again and again until ctx ends, because its settings can change and
// another server can take its place: every so often while it is fit, and more often while it is
// not. While the server is unfit, claims fail, and requests are answered with 503. A server that
// does not answer makes claims fail by itself.
func (r *replays) watch(ctx context.Context, fit, not time.Duration, durable bool,
	log *slog.Logger) {
	for {
		every := fit
		if r.unfit.Load() != nil {
			every = not
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
		}
		err := r.fit(ctx, durable, log)
		if why, ok := errors.AsType[unfit](err); ok {
			if last := r.unfit.Swap(&why); last == nil || *last != why {
				log.Error("requests are refused", "cause", err)
			}
		} else if err == nil && r.unfit.Swap(nil) != nil {
			log.Info("requests are served again")
		}
	}
}

// openReplays connects to the Redis server of -replay, and watches it until the service closes. A
// server that is unfit is an error; one that does not answer yet keeps the gateway from serving.
func (s *service) openReplays(ctx context.Context) error {
	password, err := program.Secret(s.env, redisVariable)
	if err != nil {
		return err
	}
	defer password.Destroy()
	redis.SetLogger(redisLog{s.log})
	client, err := connect(s.o.replay, password)
	if err != nil {
		return program.WrongInput("-replay: %w", err)
	}
	s.onClose(client.Close)
	r := &replays{redis: client, prefix: s.o.replayPrefix, margin: s.o.clockSkew}
	if err := r.fit(ctx, s.o.replayDurable, s.log); err != nil {
		_, wrong := errors.AsType[unfit](err)
		_, told := errors.AsType[redis.Error](err) // a wrong password, for example
		if told && !redis.IsLoadingError(err) {
			return fmt.Errorf("%w; look at -replay and %s", err, redisVariable)
		}
		if wrong {
			return err
		}
		why := notAsked
		r.unfit.Store(&why)
		s.log.Warn("requests are refused until Redis answers", "cause", err)
	}
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.watch(watching, watchFit, watchUnfit, s.o.replayDurable, s.log)
	}()
	s.onClose(func() error { stop(); <-done; return nil })
	s.replays = r
	return nil
}

// redisLog logs the messages of the Redis client about its connections.
type redisLog struct{ log *slog.Logger }

// Printf is what the Redis client calls.
func (l redisLog) Printf(ctx context.Context, format string, v ...any) {
	l.log.WarnContext(ctx, "redis", "says", fmt.Sprintf(format, v...))
}
