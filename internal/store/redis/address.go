package redis

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Address is where a Redis is.
type Address struct {
	kind     string // "", "cluster" or "sentinel"
	hosts    []string
	username string
	password string
	sentinel string // password of the sentinels
	master   string
	database int
	tls      *tls.Config
	prefix   string
}

// ParseAddress reads an address:
//
//	redis://[USER:PASSWORD@]HOST[:6379][/DATABASE]
//	redis+cluster://[USER:PASSWORD@]HOST[:6379],HOST…
//	redis+sentinel://[USER:PASSWORD@]HOST[:26379],HOST…/MASTER[/DATABASE]
//
// With rediss in place of redis all connections are by TLS. Parameters: prefix (of all keys; anytime), ca (file of the certificates
// by which servers are known, in place of the system's), cert and key (files, by which this one is), sentinel_password. password is
// used where the address has none. Errors do not show passwords.
func ParseAddress(address, password string) (Address, error) {
	a := Address{prefix: "anytime"}
	scheme, rest, ok := strings.Cut(address, "://")
	base, kind, _ := strings.Cut(scheme, "+")
	if !ok || base != "redis" && base != "rediss" || kind != "" && kind != "cluster" && kind != "sentinel" {
		return a, errors.New("must begin with redis://, rediss://, redis+cluster://, rediss+cluster://, redis+sentinel:// or rediss+sentinel://")
	}
	a.kind = kind
	rest, query, _ := strings.Cut(rest, "?")
	user, hosts := "", rest
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		user, hosts = rest[:at], rest[at+1:]
	}
	hosts, path, _ := strings.Cut(hosts, "/")
	name, secret, _ := strings.Cut(user, ":")
	var bad [2]error
	a.username, bad[0] = url.PathUnescape(name)
	a.password, bad[1] = url.PathUnescape(secret)
	if bad[0] != nil || bad[1] != nil {
		return a, errors.New("has a user or password with a wrong escape: write % as %25, @ as %40 and / as %2F")
	}
	if a.password == "" {
		a.password = password
	}
	parameters, err := url.ParseQuery(query)
	if err != nil {
		return a, errors.New("has parameters that cannot be read")
	}
	port := "6379"
	if kind == "sentinel" {
		port = "26379"
	}
	for host := range strings.SplitSeq(hosts, ",") {
		if host == "" || strings.HasPrefix(host, ":") {
			return a, errors.New("must name a host, as in redis://127.0.0.1:6379")
		}
		a.hosts = append(a.hosts, withPort(host, port))
	}
	if kind == "" && len(a.hosts) > 1 {
		return a, errors.New("has several hosts; that is for redis+cluster:// and redis+sentinel://")
	}
	if kind == "sentinel" {
		if a.master, path, _ = strings.Cut(path, "/"); a.master == "" {
			return a, errors.New("must name the master, as in redis+sentinel://host:26379/mymaster")
		}
	}
	if path != "" {
		if a.database, err = strconv.Atoi(path); err != nil || a.database < 0 || kind == "cluster" {
			return a, errors.New("must end in the number of a database, or in none; a cluster has no numbers")
		}
	}
	if base == "rediss" {
		a.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return a, a.take(parameters)
}

// withPort adds a port where there is none.
func withPort(host, port string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), port)
}

// take reads the parameters of an address.
func (a *Address) take(parameters url.Values) error {
	for name := range parameters {
		switch value := parameters.Get(name); name {
		case "prefix":
			if a.prefix = value; value == "" || strings.ContainsAny(value, "{}") {
				return errors.New("has a prefix that is empty or has braces")
			}
		case "sentinel_password":
			a.sentinel = value
		case "ca", "cert", "key":
			if a.tls == nil {
				return fmt.Errorf("has %s, which is for rediss:// only", name)
			}
		default:
			return fmt.Errorf("has the parameter %q; prefix, ca, cert, key and sentinel_password are known", name)
		}
	}
	if file := parameters.Get("ca"); file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("has a ca that cannot be read: %w", err)
		}
		a.tls.RootCAs = x509.NewCertPool()
		if !a.tls.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("has a ca, %s, that has no certificate in it", file)
		}
	}
	if cert, key := parameters.Get("cert"), parameters.Get("key"); cert != "" || key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return fmt.Errorf("has a cert and key that cannot be used: %w", err)
		}
		a.tls.Certificates = []tls.Certificate{pair}
	}
	return nil
}

// String shows the address without its secrets.
func (a Address) String() string {
	scheme := "redis"
	if a.tls != nil {
		scheme = "rediss"
	}
	if a.kind != "" {
		scheme += "+" + a.kind
	}
	return scheme + "://" + strings.Join(a.hosts, ",")
}

// client connects when it is first used.
func (a Address) client() redis.UniversalClient {
	options := &redis.UniversalOptions{
		Addrs: a.hosts, Username: a.username, Password: a.password, SentinelPassword: a.sentinel, DB: a.database, MasterName: a.master,
		TLSConfig: a.tls, IsClusterMode: a.kind == "cluster",
		// Short, for runs go on without Redis. Commits are tried again by the store itself.
		DialTimeout: patience, ReadTimeout: patience, WriteTimeout: patience, PoolTimeout: patience, ContextTimeoutEnabled: true,
		DialerRetries: 1, MaxRetries: 1, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	return redis.NewUniversalClient(options)
}
