# One file for every service; SERVICE is its folder:
#   docker build --build-arg SERVICE=recommendation/v2 --tag recommendation-v2 .
# Kubernetes probes the pods, so there is no HEALTHCHECK.
ARG BASE=docker.io/library/python:3.13.9-slim-trixie
FROM ${BASE}

COPY requirements/services.txt /tmp/requirements.txt
RUN python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --require-hashes --requirement /tmp/requirements.txt \
 && /opt/venv/bin/pip uninstall --yes pip \
 && rm /tmp/requirements.txt

WORKDIR /srv
COPY common common
ARG SERVICE
COPY ${SERVICE}/app.py app.py
# Whatever the umask of the clone: an arbitrary UID in group 0 reads it.
RUN chmod -R g+rX /srv

ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 BIND=0.0.0.0:8080
EXPOSE 8080
# A number, so that Kubernetes can see that it is not root. Any other UID works as well.
USER 10001:0
CMD ["gunicorn", "--config", "common/gunicorn.conf.py", "app:app"]

ARG VERSION=unknown
LABEL org.opencontainers.image.title="${SERVICE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
