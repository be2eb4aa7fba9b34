// A registry with the images that containerd's suites pull, made from a root directory of busybox.
//
// Usage: suites DIRECTORY CERTIFICATE
//
// It serves HTTPS at 127.0.0.1:443 with a certificate for the names of the registries that it stands for, which goes to the
// file CERTIFICATE; it says on stdout when it listens.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// The registries that it stands for.
var names = []string{"ghcr.io", "registry.k8s.io"}

func main() {
	if err := serve(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func serve(arguments []string) error {
	if len(arguments) != 2 {
		return fmt.Errorf("the arguments are a root directory and a file for the certificate")
	}
	store, err := images(arguments[0])
	if err != nil {
		return err
	}
	certificate, own, err := certificate()
	if err != nil {
		return err
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:443", &tls.Config{Certificates: []tls.Certificate{own}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(arguments[1], certificate, 0o644); err != nil {
		return err
	}
	fmt.Println("ready")
	return http.Serve(listener, store)
}

// A certificate that is its own authority's: as a text, and to serve with.
func certificate() ([]byte, tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, tls.Certificate{}, err
	}
	template := x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "registry of the tests"},
		DNSNames:              names,
		NotBefore:             time.Unix(0, 0),
		NotAfter:              time.Now().AddDate(1, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		return nil, tls.Certificate{}, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return text, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// Answers what the distribution specification calls pulling.
func (s *store) ServeHTTP(response http.ResponseWriter, request *http.Request) {
	if request.URL.Path == "/v2/" {
		return
	}
	repository, reference, isManifest := strings.Cut(strings.TrimPrefix(request.URL.Path, "/v2/"), "/manifests/")
	if !isManifest {
		_, reference, _ = strings.Cut(request.URL.Path, "/blobs/")
	} else if tagged, ok := s.tags[repository+":"+reference]; ok {
		reference = tagged
	}
	data, ok := s.blobs[reference]
	if !ok {
		http.Error(response, `{"errors": [{"code": "NOT_FOUND"}]}`, http.StatusNotFound)
		return
	}
	header := response.Header()
	header.Set("Docker-Content-Digest", reference)
	header.Set("Content-Type", s.types[reference])
	header.Set("Content-Length", strconv.Itoa(len(data)))
	if request.Method != http.MethodHead {
		// Whoever wants no more of it has gone.
		_, _ = response.Write(data)
	}
}
