// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/seed-017344ad/sealedchat"
)

// replays is a sealedchat.ReplayCache that several gateways share. An id is one key in Redis, whose value is the client
// that came with it and whether the claim stands ("+") or was released ("-"). Redis runs a script as a whole, so of two
// gateways that claim an id at the same time one is told true.
//
// Redis must keep what it was given: without maxmemory, or with the policy noeviction, under which it refuses a claim for
// which it has no room, and the gateway with it. Replication is asynchronous: what was claimed just before a failover
// can be claimed again after it.
type replays struct {
	redis  redis.UniversalClient
	prefix string
	// margin is how much longer than asked for an id is kept: as much as the clocks of the gateways may differ, for each
	// judges a request's date by its own.
	margin time.Duration
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

func (r *replays) key(id [32]byte) []string { return []string{r.prefix + hex.EncodeToString(id[:])} }

func (r *replays) Claim(ctx context.Context, id, client [32]byte, until time.Time) (bool, error) {
	life := max(time.Until(until), 0) + r.margin
	n, err := claimScript.Run(ctx, r.redis, r.key(id), client[:], max(life.Milliseconds(), 1)).Int()
	return n == 1, err
}

func (r *replays) Release(ctx context.Context, id [32]byte) error {
	return releaseScript.Run(ctx, r.redis, r.key(id)).Err()
}

// connect makes a client that gives up soon, and tries nothing twice: a claim that is sent again after a lost answer
// would find itself, and refuse a request that nobody has sent before.
func connect(url string) (redis.UniversalClient, error) {
	o, err := redis.ParseURL(url)
	if err != nil {
		return nil, errors.New("not a Redis URL") // the error quotes it, password and all
	}
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = time.Second, time.Second, time.Second, 2*time.Second
	o.MaxRetries = -1
	o.DialerRetries = 1
	o.ContextTimeoutEnabled = true
	return redis.NewClient(o), nil
}

// checkEviction refuses a server that forgets when it is full.
func checkEviction(ctx context.Context, r redis.UniversalClient) error {
	info, err := r.Info(ctx, "memory").Result()
	if err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	field := func(name string) string {
		for line := range strings.Lines(info) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+":"); ok {
				return value
			}
		}
		return ""
	}
	if limit, policy := field("maxmemory"), field("maxmemory_policy"); limit != "0" && policy != "noeviction" {
		return fmt.Errorf("redis: maxmemory-policy is %q, want noeviction: what it forgets can be replayed", policy)
	}
	return nil
}
