package results

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Times of the issuer's keys. Whoever verifies identity tokens keeps the published keys for hours, so that a new key is
// published for a day before it signs, and one that was replaced stays published for a week.
const (
	keyFor        = 90 * 24 * time.Hour // signs
	keyAhead      = 24 * time.Hour      // is published before it signs
	keyPublished  = 7 * 24 * time.Hour  // is published when it no longer signs
	keyBits       = 2048
	secretBytes   = 32
	secretFile    = "secret"
	keyTimeLayout = "20060102T150405Z"
)

// keyring is the keys of a Service: files of mode 0600, so that tokens outlive the process.
type keyring struct {
	dir    string
	now    func() time.Time
	secret []byte // signs jobs' tokens and addresses

	mu   sync.Mutex
	keys []signingKey // oldest first
}

// signingKey is a key of the issuer.
type signingKey struct {
	id   string
	made time.Time
	key  *rsa.PrivateKey
}

func openKeyring(dir string, now func() time.Time) (*keyring, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	k := &keyring{dir: dir, now: now}
	var err error
	if k.secret, err = k.openSecret(); err != nil {
		return nil, err
	}
	return k, k.load()
}

// openSecret reads the secret, or makes it. Of two processes that make it the first one wins.
func (k *keyring) openSecret() ([]byte, error) {
	path := filepath.Join(k.dir, secretFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		fresh := make([]byte, secretBytes)
		rand.Read(fresh)
		if err := create(path, fresh); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		b, err = os.ReadFile(path)
	}
	if err == nil && len(b) != secretBytes {
		err = fmt.Errorf("%s holds %d bytes, want %d", path, len(b), secretBytes)
	}
	return b, err
}

// create makes a file that is complete when it is there, and fails where there is one.
func create(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "new-*") // of mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), path)
}

// load reads the issuer's keys. A file's name is when the key was made, and its id.
func (k *keyring) load() error {
	files, err := filepath.Glob(filepath.Join(k.dir, "*.pem"))
	if err != nil {
		return err
	}
	slices.Sort(files)
	var keys []signingKey
	for _, path := range files {
		key, err := readKey(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // another process has just removed it
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		keys = append(keys, key)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = keys
	return nil
}

func readKey(path string) (signingKey, error) {
	name := strings.TrimSuffix(filepath.Base(path), ".pem")
	stamp, _, _ := strings.Cut(name, "-")
	made, err := time.Parse(keyTimeLayout, stamp)
	if err != nil {
		return signingKey{}, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return signingKey{}, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return signingKey{}, errors.New("it holds no PEM block")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return signingKey{}, err
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return signingKey{}, errors.New("it holds no RSA key")
	}
	return signingKey{id: name, made: made, key: key}, nil
}

// make makes a key of the issuer.
func (k *keyring) make(now time.Time) error {
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(x509.MarshalPKCS1PublicKey(&key.PublicKey))
	name := now.UTC().Format(keyTimeLayout) + "-" + hex.EncodeToString(sum[:8])
	err = create(filepath.Join(k.dir, name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	return errors.Join(err, k.load())
}

// rotate makes the next key in time and removes those that were replaced long ago. Where no key was ever needed there is
// nothing to do.
func (k *keyring) rotate(now time.Time) error {
	if err := k.load(); err != nil {
		return err
	}
	keys := k.published()
	if len(keys) == 0 {
		return nil
	}
	var errs []error
	for i := range keys[:len(keys)-1] {
		if now.Sub(keys[i+1].made) > keyAhead+keyPublished {
			errs = append(errs, os.Remove(filepath.Join(k.dir, keys[i].id+".pem")))
		}
	}
	if now.Sub(keys[len(keys)-1].made) > keyFor {
		errs = append(errs, k.make(now))
	}
	return errors.Join(append(errs, k.load())...)
}

// signing returns the key that signs now, and makes the first one.
func (k *keyring) signing() (signingKey, error) {
	for range 2 {
		keys := k.published()
		for i := len(keys) - 1; i >= 0; i-- {
			if i == 0 || k.now().Sub(keys[i].made) >= keyAhead {
				return keys[i], nil
			}
		}
		if err := k.make(k.now()); err != nil {
			return signingKey{}, fmt.Errorf("make a key of the issuer: %w", err)
		}
	}
	return signingKey{}, errors.New("the issuer has no key")
}

// published returns all keys, oldest first.
func (k *keyring) published() []signingKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.keys)
}
