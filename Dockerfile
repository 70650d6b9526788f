# The worker and the demo of docker-compose.yml.
FROM python:3.13-slim
WORKDIR /app
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY celery_resilience celery_resilience
COPY examples examples
RUN pip install --no-cache-dir '.[demo]' && useradd --create-home celery
USER celery
