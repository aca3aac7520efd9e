# A TLS 1.3 server with a shared key and a certificate never uses the key with OpenSSL 3.0.20: who comes with the right one is shown the
# certificate, and neither side says a word of it. GnuTLS 3.7.9's server, given both, goes by the key. OpenSSL
# chooses the cipher suite first, one of SHA-384 as soon as there is a certificate, and such a key is of SHA-256: with
# TLS_CHACHA20_POLY1305_SHA256 as its only suite it has both, too.
# Needs root (chroot), and the lists of Debian 12 with these very versions.
. "$(dirname "$0")/common.sh"
debian_packages bookworm openssl=3.0.20-1~deb12u2 gnutls-bin=3.7.9-2+deb12u7
key=$(printf '%064x' 5)
echo "alice:$key" >root/tmp/keys
in_root openssl req -x509 -newkey rsa:2048 -nodes -keyout /tmp/key.pem -out /tmp/cert.pem -subj /CN=x -days 30 2>/dev/null
port=$((20000 + $$ % 20000))
goes_by() {  # SERVER, with @ for the port: what OpenSSL's client with the key says it was shown
    port=$((port + 1))
    # shellcheck disable=SC2016 # for the inner shell
    in_root sh -c '
        $1 >/tmp/server.log 2>&1 & server=$!
        for _ in 1 2 3 4 5 6 7 8 9; do
            sleep 1
            (echo hello; sleep 1) | timeout 10 openssl s_client -tls1_3 -connect "127.0.0.1:$2" -psk "$3" -psk_identity alice \
                >/tmp/client.log 2>&1 || true
            case $(cat /tmp/client.log) in *refused*) ;; *) break ;; esac
        done
        kill "$server" || true' sh "$(echo "$1" | sed "s/@/$port/")" "$port" "$key"
    grep -oE '^(New|Reused), TLSv1.3|no peer certificate|subject=.*' root/tmp/client.log | sort | tr '\n' ';'
}
openssl_server="openssl s_server -quiet -tls1_3 -accept @ -psk $key -psk_identity alice"
beside="-cert /tmp/cert.pem -key /tmp/key.pem"
gnutls_server="gnutls-serv --quiet --echo -p @ --priority NORMAL:-VERS-ALL:+VERS-TLS1.3:+PSK:+DHE-PSK:+ECDHE-PSK --pskpasswd /tmp/keys"
expect "OpenSSL, the key alone" "Reused, TLSv1.3;no peer certificate;" "$(goes_by "$openssl_server -nocert")"
expect "OpenSSL, a certificate beside it" "New, TLSv1.3;subject=CN = x;" "$(goes_by "$openssl_server $beside")"
expect "OpenSSL, both and a suite of SHA-256" "Reused, TLSv1.3;no peer certificate;" \
    "$(goes_by "$openssl_server $beside -ciphersuites TLS_CHACHA20_POLY1305_SHA256")"
expect "GnuTLS, a certificate beside it" "Reused, TLSv1.3;no peer certificate;" \
    "$(goes_by "$gnutls_server --x509certfile /tmp/cert.pem --x509keyfile /tmp/key.pem")"
